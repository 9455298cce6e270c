-- purpose: How does concentration change over layers? The mean over samples, with its 95 % interval over prompts
--   (Student's t, within the range of the values; null with fewer than 5 prompts, and if all are equal), of ratio
--   (largest score / lower median score), energy_share (share of squared values in the top-k), gini (of the 32 largest
--   scores) and token_norm_ratio (largest / lower median token norm; far above 1 means token outliers). A sample's
--   value is first averaged over the chosen steps. Cells whose hidden state, ratio or measure is not finite are
--   excluded and counted.
-- grain: one row per (layer, measure)
-- shown: layer, measure, n_samples, mean, mean_low, mean_high, median
-- param step: int = -1 -- only this step; -1 for all
-- param stream: str = image {image, text} -- stream of the tokens
-- param branch: str = cond {cond, uncond} -- guidance branch
-- param measure: str = all {all, ratio, energy_share, gini, token_norm_ratio} -- only this measure
-- column layer: index -- global block index
-- column block: path -- dotted module path of the block
-- column measure: name -- one of the four measures
-- column n_samples: samples -- samples with a usable value
-- column n_prompts: prompts -- different prompts among them
-- column mean: of the measure -- mean over samples
-- column mean_low: of the measure -- lower end of its interval
-- column mean_high: of the measure -- upper end of its interval
-- column median: of the measure -- median over samples
-- column n_nonfinite: cells -- cells excluded
with chosen as (
    select
        layer,
        block,
        sample,
        ratio,
        energy_share,
        gini,
        token_norm_ratio,
        if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch and ($step = -1 or step = $step)
),

by_sample as (
    select
        layer,
        sample,
        any_value(block) as block,
        count(*) as n,
        count(*) filter (usable) as n_ratio,
        count(*) filter (usable and isfinite(energy_share)) as n_energy_share,
        count(*) filter (usable and isfinite(gini)) as n_gini,
        count(*) filter (usable and isfinite(token_norm_ratio)) as n_token_norm_ratio,
        avg(ratio) filter (usable) as ratio,
        avg(energy_share) filter (usable and isfinite(energy_share)) as energy_share,
        avg(gini) filter (usable and isfinite(gini)) as gini,
        avg(token_norm_ratio) filter (usable and isfinite(token_norm_ratio)) as token_norm_ratio
    from chosen
    group by layer, sample
),

measured as (
    select
        layer,
        block,
        sample,
        unnest(range(4)) as place,
        unnest(['ratio', 'energy_share', 'gini', 'token_norm_ratio']) as measure,
        unnest([ratio, energy_share, gini, token_norm_ratio]) as value,
        unnest([n - n_ratio, n - n_energy_share, n - n_gini, n - n_token_norm_ratio]) as n_nonfinite
    from by_sample
),

summed as (
    select
        layer,
        any_value(block) as block,
        place,
        measure,
        count(value) as n_samples,
        sum(value) as total,
        median(value) as median,
        sum(n_nonfinite)::bigint as n_nonfinite
    from measured
    where $measure = 'all' or measure = $measure
    group by layer, place, measure
),

by_prompt as (
    select layer, place, prompt, count(*) as n, sum(value) as total
    from measured
    join (select sample, prompt from samples) using (sample)
    where value is not null
    group by layer, place, prompt
),

-- The jackknife: the spread of the means that leave out one prompt.
errors as (
    select
        layer,
        place,
        count(*) as n_prompts,
        (count(*) - 1) / sqrt(count(*))
        * stddev_samp((summed.total - by_prompt.total) / nullif(n_samples - n, 0)) as error
    from by_prompt
    join summed using (layer, place)
    group by layer, place
),

-- Threads add in any order, which changes the last digits. Rounding makes the result reproducible.
means as (
    select
        *,
        round(total / nullif(n_samples, 0), 9) as mean,
        if(measure in ('ratio', 'token_norm_ratio'), 1, 0) as least,
        if(measure in ('ratio', 'token_norm_ratio'), 'inf'::double, 1) as most
    from summed
    left join errors using (layer, place)
)

select
    layer,
    block,
    measure,
    n_samples,
    coalesce(n_prompts, 0) as n_prompts,
    mean,
    interval_low(mean, round(error, 9), n_prompts, least, most) as mean_low,
    interval_high(mean, round(error, 9), n_prompts, least, most) as mean_high,
    median,
    n_nonfinite
from means
order by layer, place
