-- purpose: How does one channel evolve over layers and steps? Its frequency in the top k (the k channels with the
--   largest scores), its rank there, and its score relative to the median channel's. Cells whose hidden state or ratio
--   is not finite are excluded and counted. Intervals are 95 % over prompts, since samples of one prompt are not
--   independent: Student's t, within the range of the values; null with fewer than 5 prompts, and if all are equal.
-- grain: one row per (layer, step), even if the channel is never selected there
-- shown: layer, step, n_samples, frequency, mean_ratio, ratio_low, ratio_high, mean_rank
-- param channel: int = -1 -- index of the channel; -1 for the one that is in the top-k of the most cells of the run's
--   stream and branch, of several the one with the largest mean ratio
-- param layer: int = -1 -- only this layer; -1 for all
-- param step: int = -1 -- only this step; -1 for all
-- param stream: str = image {image, text} -- stream of the tokens
-- param branch: str = cond {cond, uncond} -- guidance branch
-- column channel: index -- the channel
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column n: samples -- samples with the channel in their top-k
-- column n_samples: samples -- samples with a usable cell here
-- column n_prompts: prompts -- different prompts among them
-- column frequency: 0 to 1 -- n / n_samples
-- column frequency_low: 0 to 1 -- lower end of its interval
-- column frequency_high: 0 to 1 -- upper end of its interval
-- column mean_ratio: x median -- mean of the channel's score / lower median score of all channels, over the n samples
-- column ratio_low: x median -- lower end of its interval
-- column ratio_high: x median -- upper end of its interval
-- column mean_rank: rank -- mean place among the top-k over the n samples; 1 is the largest score
-- column rank_low: rank -- lower end of its interval
-- column rank_high: rank -- upper end of its interval
-- column n_nonfinite: cells -- cells excluded here
with track_cells as not materialized (
    select
        layer,
        step,
        sample,
        top_channels,
        top_scores,
        median_score,
        if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch
),

commonest as (
    select channel
    from (
        select unnest(top_channels) as channel, unnest(top_scores)::double / median_score as ratio
        from track_cells
        where usable and $channel = -1
    )
    group by channel
    order by count(*) desc, round(avg(ratio), 9) desc, channel
    limit 1
),

chosen as (
    select if($channel = -1, (select channel from commonest), $channel) as channel
),

-- If every prompt has one sample, samples are independent, and need not be grouped by prompt.
seeds as (
    select count(*) > count(distinct prompt) as several
    from samples
),

ranked as (
    select
        layer,
        step,
        sample,
        usable,
        if(usable, list_position(top_channels, channel), null) as rank,
        top_scores[rank]::double / median_score as ratio
    from track_cells
    cross join chosen
    where ($layer = -1 or layer = $layer) and ($step = -1 or step = $step)
),

by_cell as (
    select
        layer,
        step,
        count(rank) as n,
        count(*) filter (usable) as n_samples,
        count(*) filter (not usable) as n_nonfinite,
        n / nullif(n_samples, 0) as frequency,
        avg(rank) as mean_rank,
        stddev_samp(rank) / sqrt(count(rank)) as rank_error,
        avg(ratio) as mean_ratio,
        stddev_samp(ratio) / sqrt(count(rank)) as ratio_error
    from ranked
    group by layer, step
),

by_prompt as (
    select
        layer,
        step,
        prompt,
        count(*) as n_of_prompt,
        count(rank) as n_here,
        sum(rank) as ranks,
        sum(ratio) as ratios
    from ranked
    join (select sample, prompt from samples) using (sample)
    where usable and (select several from seeds)
    group by layer, step, prompt
),

-- For means, the jackknife: the spread of the means that leave out one prompt. For a frequency, the spread of prompts.
clustered as (
    select
        layer,
        step,
        count(*) as n_prompts,
        count(*) filter (n_here > 0) as n_with,
        sum(pow(n_here - frequency * n_of_prompt, 2)) as apart,
        (n_with - 1) / sqrt(n_with) * stddev_samp((mean_rank * n - ranks) / nullif(n - n_here, 0)) as rank_error,
        (n_with - 1) / sqrt(n_with) * stddev_samp((mean_ratio * n - ratios) / nullif(n - n_here, 0)) as ratio_error
    from by_prompt
    join by_cell using (layer, step)
    group by layer, step
),

-- Threads add in any order, which changes the last digits. Rounding makes the result reproducible.
measured as (
    select
        by_cell.* exclude (mean_ratio, rank_error, ratio_error),
        coalesce(n_prompts, n_samples) as n_prompts,
        coalesce(n_with, n) as n_with,
        round(mean_ratio, 9) as mean_ratio,
        round(if(several, clustered.rank_error, by_cell.rank_error), 9) as rank_error,
        round(if(several, clustered.ratio_error, by_cell.ratio_error), 9) as ratio_error,
        round(
            sqrt(
                coalesce(n_prompts, n_samples) / nullif(coalesce(n_prompts, n_samples) - 1, 0)
                * coalesce(apart, n * (1 - frequency))
            ) / nullif(n_samples, 0),
            9
        ) as frequency_error
    from by_cell
    cross join seeds
    left join clustered using (layer, step)
)

select
    channel,
    layer,
    step,
    n,
    n_samples,
    n_prompts,
    frequency,
    interval_low(frequency, frequency_error, n_prompts, 0, 1) as frequency_low,
    interval_high(frequency, frequency_error, n_prompts, 0, 1) as frequency_high,
    mean_ratio,
    interval_low(mean_ratio, ratio_error, n_with, 0, 'inf') as ratio_low,
    interval_high(mean_ratio, ratio_error, n_with, 0, 'inf') as ratio_high,
    mean_rank,
    interval_low(mean_rank, rank_error, n_with, 1, 'inf') as rank_low,
    interval_high(mean_rank, rank_error, n_with, 1, 'inf') as rank_high,
    n_nonfinite
from measured
cross join chosen
order by layer, step
