-- purpose: Which channels are massive, and how reliably? By layer and step, how often a channel is among the k of
--   largest score, its rank there, and its score relative to the median channel's. A cell whose hidden state or ratio
--   is not finite is left out and counted. Intervals are 95 %: Wilson's for the frequency, mean +- 1.96 standard
--   errors over samples for the means (null for one sample). Samples count as independent.
-- grain: one row per (layer, step, channel) that is in the top-k at least min_frequency of the time
-- param layer: int = -1 -- only this layer; -1 takes all
-- param step: int = -1 -- only this step; -1 takes all
-- param stream: str = image {image, text} -- which stream's tokens
-- param branch: str = cond {cond, uncond} -- which branch of guidance
-- param min_frequency: float = 0.5 -- leave out channels that are selected less often, 0 to 1
-- param top: int = 5 -- at most so many channels per layer and step, the most frequent first; 0 takes all
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column channel: index -- the channel
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
with chosen as not materialized (
    select layer, step, top_channels, top_scores, median_score, if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch and ($layer = -1 or layer = $layer) and ($step = -1 or step = $step)
),

counts as (
    select layer, step, count(*) filter (usable) as n_samples, count(*) filter (not usable) as n_nonfinite
    from chosen
    group by layer, step
),

selected as (
    select
        layer,
        step,
        unnest(top_channels) as channel,
        generate_subscripts(top_channels, 1) as rank,
        unnest(top_scores)::double / median_score as ratio
    from chosen
    where usable
),

-- Threads add in any order, which changes the last digits: rounded, an answer is the same every time.
by_channel as (
    select
        layer,
        step,
        channel,
        count(*) as n,
        avg(rank) as mean_rank,
        round(1.959964 * stddev_samp(rank) / sqrt(count(*)), 9) as rank_margin,
        round(avg(ratio), 9) as mean_ratio,
        round(1.959964 * stddev_samp(ratio) / sqrt(count(*)), 9) as ratio_margin
    from selected
    group by layer, step, channel
),

with_frequency as (
    select
        by_channel.*,
        n_samples,
        n_nonfinite,
        n / n_samples as frequency,
        (n / n_samples + pow(1.959964, 2) / (2 * n_samples)) / (1 + pow(1.959964, 2) / n_samples) as wilson_center,
        1.959964
        * sqrt(n / n_samples * (1 - n / n_samples) / n_samples + pow(1.959964 / (2 * n_samples), 2))
        / (1 + pow(1.959964, 2) / n_samples) as wilson_margin
    from by_channel
    join counts using (layer, step)
),

kept as (
    select *
    from with_frequency
    where frequency >= $min_frequency
    qualify
        $top = 0
        or row_number() over (partition by layer, step order by frequency desc, mean_ratio desc, channel) <= $top
)

select
    layer,
    step,
    channel,
    n,
    n_samples,
    frequency,
    greatest(wilson_center - wilson_margin, 0) as frequency_low,
    least(wilson_center + wilson_margin, 1) as frequency_high,
    mean_ratio,
    mean_ratio - ratio_margin as ratio_low,
    mean_ratio + ratio_margin as ratio_high,
    mean_rank,
    mean_rank - rank_margin as rank_low,
    mean_rank + rank_margin as rank_high,
    n_nonfinite
from kept
order by layer, step, frequency desc, mean_ratio desc, channel
