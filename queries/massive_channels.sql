-- purpose: Which channels are massive, and how reliably? By layer and step, the frequency of a channel in the top k
--   (the k channels with the largest scores), its rank there, and its score relative to the median channel's. Cells
--   whose hidden state or ratio is not finite are excluded and counted. Intervals are 95 % over prompts, since samples
--   of one prompt are not independent: Student's t, within the range of the values; null with fewer than 5 prompts, and
--   if all are equal.
-- grain: one row per (layer, step, channel) that is in the top-k of at least min_frequency of the samples
-- shown: layer, step, channel, n_samples, frequency, mean_ratio, mean_rank
-- param layer: int = -1 -- only this layer; -1 for all
-- param step: int = -1 -- only this step; -1 for all
-- param stream: str = image {image, text} -- stream of the tokens
-- param branch: str = cond {cond, uncond} -- guidance branch
-- param min_frequency: float = 0.5 -- smallest frequency to list, 0 to 1
-- param top: int = 5 -- maximum number of channels per layer and step, the most frequent first; 0 for all
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column channel: index -- the channel
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
with chosen as not materialized (
    select
        layer,
        step,
        sample,
        top_channels,
        top_scores,
        median_score,
        if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch and ($layer = -1 or layer = $layer) and ($step = -1 or step = $step)
),

-- If every prompt has one sample, samples are independent, and need not be grouped by prompt.
seeds as (
    select count(*) > count(distinct prompt) as several
    from samples
),

counts as (
    select
        layer,
        step,
        count(*) filter (usable) as n_samples,
        count(*) filter (not usable) as n_nonfinite
    from chosen
    group by layer, step
),

prompts as (
    select layer, step, prompt, count(*) as n_of_prompt
    from chosen
    join (select sample, prompt from samples) using (sample)
    where usable and (select several from seeds)
    group by layer, step, prompt
),

of_prompts as (
    select layer, step, count(*) as n_prompts, sum(n_of_prompt * n_of_prompt) as squares
    from prompts
    group by layer, step
),

selected as (
    select
        layer,
        step,
        sample,
        unnest(top_channels) as channel,
        generate_subscripts(top_channels, 1) as rank,
        unnest(top_scores)::double / median_score as ratio
    from chosen
    where usable
),

by_channel as (
    select
        layer,
        step,
        channel,
        count(*) as n,
        avg(rank) as mean_rank,
        stddev_samp(rank) / sqrt(count(*)) as rank_error,
        avg(ratio) as mean_ratio,
        stddev_samp(ratio) / sqrt(count(*)) as ratio_error
    from selected
    group by layer, step, channel
),

kept as (
    select
        by_channel.*,
        n_samples,
        n_nonfinite,
        coalesce(n_prompts, n_samples) as n_prompts,
        coalesce(squares, n_samples) as squares,
        n / n_samples as frequency
    from by_channel
    join counts using (layer, step)
    left join of_prompts using (layer, step)
    where n / n_samples >= $min_frequency
    qualify
        $top = 0
        or row_number() over (
            partition by layer, step order by frequency desc, round(mean_ratio, 9) desc, channel
        ) <= $top
),

by_prompt as (
    select layer, step, channel, prompt, count(*) as n_here, sum(rank) as ranks, sum(ratio) as ratios
    from selected
    semi join kept using (layer, step, channel)
    join (select sample, prompt from samples) using (sample)
    where (select several from seeds)
    group by layer, step, channel, prompt
),

-- For means, the jackknife: the spread of the means that leave out one prompt. For a frequency, which includes prompts
-- without the channel, the spread of prompts around it: sum (n_here - frequency n_of_prompt)^2, expanded.
clustered as (
    select
        layer,
        step,
        channel,
        count(*) as n_with,
        sum(n_here * n_here) as with_squares,
        sum(n_here * n_of_prompt) as products,
        (count(*) - 1) / sqrt(count(*))
        * stddev_samp((mean_rank * n - ranks) / nullif(n - n_here, 0)) as rank_error,
        (count(*) - 1) / sqrt(count(*))
        * stddev_samp((mean_ratio * n - ratios) / nullif(n - n_here, 0)) as ratio_error
    from by_prompt
    join prompts using (layer, step, prompt)
    join kept using (layer, step, channel)
    group by layer, step, channel
),

-- Threads add in any order, which changes the last digits. Rounding makes the result reproducible.
measured as (
    select
        kept.* exclude (mean_ratio, rank_error, ratio_error),
        coalesce(n_with, n) as n_with,
        round(mean_ratio, 9) as mean_ratio,
        round(if(several, clustered.rank_error, kept.rank_error), 9) as rank_error,
        round(if(several, clustered.ratio_error, kept.ratio_error), 9) as ratio_error,
        round(
            sqrt(
                n_prompts / nullif(n_prompts - 1, 0) * greatest(
                    coalesce(with_squares, n) - 2 * frequency * coalesce(products, n) + frequency * frequency * squares,
                    0
                )
            ) / n_samples,
            9
        ) as frequency_error
    from kept
    cross join seeds
    left join clustered using (layer, step, channel)
)

select
    layer,
    step,
    channel,
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
order by layer, step, frequency desc, mean_ratio desc, channel
