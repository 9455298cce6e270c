-- purpose: How does one channel go through layers and steps? How often it is among the k of largest score, its rank
--   there, and its score relative to the median channel's. A cell whose hidden state or ratio is not finite is left
--   out and counted. Intervals are 95 %: Wilson's for the frequency, mean +- 1.96 standard errors over samples for
--   the means (null for one sample). Samples count as independent.
-- grain: one row per (layer, step), also where the channel is never selected
-- param channel: int = -1 -- which channel; -1 takes the one that is in the top-k of the most cells of the run's
--   stream and branch
-- param layer: int = -1 -- only this layer; -1 takes all
-- param step: int = -1 -- only this step; -1 takes all
-- param stream: str = image {image, text} -- which stream's tokens
-- param branch: str = cond {cond, uncond} -- which branch of guidance
-- column channel: index -- the channel
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column n: samples -- samples with the channel in their top-k
-- column n_samples: samples -- samples with a usable cell here
-- column frequency: 0 to 1 -- n / n_samples
-- column frequency_low: 0 to 1 -- lower end of its interval
-- column frequency_high: 0 to 1 -- upper end of its interval
-- column mean_ratio: x median -- mean of the channel's score / lower median score of all channels, over the n samples
-- column ratio_low: x median -- lower end of its interval
-- column ratio_high: x median -- upper end of its interval
-- column mean_rank: rank -- mean place among the top-k over the n samples; 1 is the largest score
-- column rank_low: rank -- lower end of its interval
-- column rank_high: rank -- upper end of its interval
-- column n_nonfinite: cells -- cells left out here
with track_cells as not materialized (
    select layer, step, top_channels, top_scores, median_score, if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch
),

commonest as (
    select channel
    from (select unnest(top_channels) as channel from track_cells where usable and $channel = -1)
    group by channel
    order by count(*) desc, channel
    limit 1
),

chosen as (
    select if($channel = -1, (select channel from commonest), $channel) as channel
),

ranked as (
    select
        layer,
        step,
        usable,
        if(usable, list_position(top_channels, channel), null) as rank,
        top_scores[rank]::double / median_score as ratio
    from track_cells
    cross join chosen
    where ($layer = -1 or layer = $layer) and ($step = -1 or step = $step)
),

-- Threads add in any order, which changes the last digits: rounded, an answer is the same every time.
by_cell as (
    select
        layer,
        step,
        count(rank) as n,
        count(*) filter (usable) as n_samples,
        count(*) filter (not usable) as n_nonfinite,
        avg(rank) as mean_rank,
        round(1.959964 * stddev_samp(rank) / sqrt(count(rank)), 9) as rank_margin,
        round(avg(ratio), 9) as mean_ratio,
        round(1.959964 * stddev_samp(ratio) / sqrt(count(rank)), 9) as ratio_margin
    from ranked
    group by layer, step
),

with_frequency as (
    select *, n / nullif(n_samples, 0) as frequency
    from by_cell
),

with_wilson as (
    select
        *,
        (frequency + pow(1.959964, 2) / (2 * n_samples)) / (1 + pow(1.959964, 2) / n_samples) as wilson_center,
        1.959964
        * sqrt(frequency * (1 - frequency) / n_samples + pow(1.959964 / (2 * n_samples), 2))
        / (1 + pow(1.959964, 2) / n_samples) as wilson_margin
    from with_frequency
)

select
    channel,
    layer,
    step,
    n,
    n_samples,
    frequency,
    if(n_samples = 0, null, greatest(wilson_center - wilson_margin, 0)) as frequency_low,
    if(n_samples = 0, null, least(wilson_center + wilson_margin, 1)) as frequency_high,
    mean_ratio,
    mean_ratio - ratio_margin as ratio_low,
    mean_ratio + ratio_margin as ratio_high,
    mean_rank,
    mean_rank - rank_margin as rank_low,
    mean_rank + rank_margin as rank_high,
    n_nonfinite
from with_wilson
cross join chosen
order by layer, step
