-- purpose: How does concentration change over denoising steps? The mean over samples, with its 95 % interval over
--   prompts (Student's t, within the range of the values; null with fewer than 5 prompts, and if all are equal), of
--   ratio (largest score / lower median score), energy_share (share of squared values in the top-k), gini (of the 32
--   largest scores) and token_norm_ratio (largest / lower median token norm; far above 1 means token outliers). A
--   sample's value is first averaged over the chosen layers. Cells whose hidden state, ratio or measure is not finite
--   are excluded and counted.
-- grain: one row per (step, measure)
-- shown: step, measure, n_samples, mean, mean_low, mean_high, median
-- param layer: int = -1 -- only this layer; -1 for all
-- param stream: str = image {image, text} -- stream of the tokens
-- param branch: str = cond {cond, uncond} -- guidance branch
-- param measure: str = all {all, ratio, energy_share, gini, token_norm_ratio} -- only this measure
-- column step: index -- denoising step, 0-based
-- column timestep: timestep -- the scheduler's timestep, median over samples (one value unless samples differ in their
--   steps)
-- column sigma: noise level -- the scheduler's noise level, median over samples; null if it has none
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
        step,
        timestep,
        sigma,
        sample,
        ratio,
        energy_share,
        gini,
        token_norm_ratio,
        if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch and ($layer = -1 or layer = $layer)
),

schedule as (
    select step, median(timestep) as timestep, median(sigma) as sigma
    from chosen
    group by step
),

by_sample as (
    select
        step,
        sample,
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
    group by step, sample
),

measured as (
    select
        step,
        sample,
        unnest(range(4)) as place,
        unnest(['ratio', 'energy_share', 'gini', 'token_norm_ratio']) as measure,
        unnest([ratio, energy_share, gini, token_norm_ratio]) as value,
        unnest([n - n_ratio, n - n_energy_share, n - n_gini, n - n_token_norm_ratio]) as n_nonfinite
    from by_sample
),

summed as (
    select
        step,
        place,
        measure,
        count(value) as n_samples,
        sum(value) as total,
        median(value) as median,
        sum(n_nonfinite)::bigint as n_nonfinite
    from measured
    where $measure = 'all' or measure = $measure
    group by step, place, measure
),

by_prompt as (
    select step, place, prompt, count(*) as n, sum(value) as total
    from measured
    join (select sample, prompt from samples) using (sample)
    where value is not null
    group by step, place, prompt
),

-- The jackknife: the spread of the means that leave out one prompt.
errors as (
    select
        step,
        place,
        count(*) as n_prompts,
        (count(*) - 1) / sqrt(count(*))
        * stddev_samp((summed.total - by_prompt.total) / nullif(n_samples - n, 0)) as error
    from by_prompt
    join summed using (step, place)
    group by step, place
),

-- Threads add in any order, which changes the last digits. Rounding makes the result reproducible.
means as (
    select
        *,
        round(total / nullif(n_samples, 0), 9) as mean,
        if(measure in ('ratio', 'token_norm_ratio'), 1, 0) as least,
        if(measure in ('ratio', 'token_norm_ratio'), 'inf'::double, 1) as most
    from summed
    left join errors using (step, place)
)

select
    step,
    timestep,
    sigma,
    measure,
    n_samples,
    coalesce(n_prompts, 0) as n_prompts,
    mean,
    interval_low(mean, round(error, 9), n_prompts, least, most) as mean_low,
    interval_high(mean, round(error, 9), n_prompts, least, most) as mean_high,
    median,
    n_nonfinite
from means
join schedule using (step)
order by step, place
