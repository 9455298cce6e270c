-- purpose: Which samples are unlike the others? At some layer, in their ratio (largest score / lower median score) or
--   in their massive channels: overlap, the share of the sample's top-k that is in the modal set, the k most often
--   selected channels of that layer and step. A sample's value at a layer is its mean over steps; z is (value - median
--   over samples) / (1.4826 x median absolute deviation), or / (1.2533 x mean absolute deviation) if more than half of
--   the samples share one value; if all do, there is no z. For overlap, only low values count. Cells whose hidden state
--   or ratio is not finite are excluded and counted. Every sample is tested at every layer, so among many samples a few
--   exceed min_z by chance.
-- grain: one row per sample whose largest |z| reaches min_z, at the layer and measure of that z
-- shown: sample, prompt, measure, direction, z, layer, step, value
-- param stream: str = image {image, text} -- stream of the tokens
-- param branch: str = cond {cond, uncond} -- guidance branch
-- param min_z: float = 3.0 -- the smallest |z| to report
-- param top: int = 20 -- maximum number of samples, the largest |z| first; 0 for all
-- column sample_id: id -- the manifest's id
-- column sample: index -- index on the store's sample axis, 0-based
-- column prompt: text -- the sample's prompt
-- column seed: seed -- the sample's seed
-- column measure: name -- ratio or overlap, whichever deviates most
-- column direction: name -- high or low
-- column z: robust sd -- how far the sample's value is from the others' median
-- column layer: index -- layer of that z
-- column step: index -- at that layer, the step whose value deviates most from its own median in that direction
-- column value: of the measure -- the sample's value at the layer
-- column median: of the measure -- median over samples at the layer
-- column n_samples: samples -- samples compared at the layer
-- column n_nonfinite: cells -- the sample's excluded cells
with track_cells as not materialized (
    select sample, layer, step, top_channels, ratio, if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch
),

left_out as (
    select sample, count(*) as n_nonfinite
    from track_cells
    where not usable
    group by sample
),

frequencies as (
    select layer, step, channel, count(*) as n, max(k) as k
    from (
        select layer, step, len(top_channels) as k, unnest(top_channels) as channel
        from track_cells
        where usable
    )
    group by layer, step, channel
),

modal_sets as (
    select layer, step, list(channel) as modal
    from (
        select layer, step, channel
        from frequencies
        qualify
            row_number() over (partition by layer, step order by n desc, channel)
            <= max(k) over (partition by layer, step)
    )
    group by layer, step
),

cell_values as (
    select
        sample,
        layer,
        step,
        ratio,
        len([c for c in top_channels if list_contains(modal, c)]) / len(top_channels) as overlap
    from track_cells
    left join modal_sets using (layer, step)
    where usable
),

by_layer as (
    select sample, layer, avg(ratio) as ratio, avg(overlap) as overlap
    from cell_values
    group by sample, layer
),

layer_values as (
    select sample, layer, measure, value
    from (
        select sample, layer, unnest(['ratio', 'overlap']) as measure, unnest([ratio, overlap]) as value
        from by_layer
    )
    where value is not null
),

centers as (
    select layer, measure, median(value) as median, count(*) as n_samples
    from layer_values
    group by layer, measure
),

spreads as (
    select layer, measure, median(abs(value - median)) as median_deviation, avg(abs(value - median)) as mean_deviation
    from layer_values
    join centers using (layer, measure)
    group by layer, measure
),

scored as (
    select
        *,
        (value - median) / if(median_deviation > 0, 1.4826 * median_deviation, nullif(1.2533 * mean_deviation, 0)) as z
    from layer_values
    join centers using (layer, measure)
    join spreads using (layer, measure)
),

worst as (
    select *
    from scored
    where abs(z) >= $min_z and (measure = 'ratio' or z < 0)
    qualify row_number() over (partition by sample order by abs(z) desc, layer, measure) = 1
),

reported as (
    select *
    from worst
    qualify $top = 0 or row_number() over (order by abs(z) desc, sample) <= $top
),

step_medians as (
    select layer, step, median(ratio::double) as ratio, median(overlap) as overlap
    from cell_values
    where layer in (select layer from reported)
    group by layer, step
),

deviations as (
    select
        reported.sample, step,
        sign(z) * if(measure = 'ratio', c.ratio - m.ratio, c.overlap - m.overlap) as deviation
    from reported
    join cell_values as c using (sample, layer)
    join step_medians as m using (layer, step)
),

steps as (
    select sample, arg_max(step, struct_pack(far := deviation, early := -step)) as step
    from deviations
    where deviation is not null
    group by sample
)

select
    sample_id,
    sample,
    prompt,
    seed,
    measure,
    if(z > 0, 'high', 'low') as direction,
    z,
    layer,
    step,
    value,
    median,
    n_samples,
    coalesce(n_nonfinite, 0) as n_nonfinite
from reported
join steps using (sample)
join samples using (sample)
left join left_out using (sample)
order by abs(z) desc, sample
