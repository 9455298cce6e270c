-- purpose: Are the massive channels the same from sample to sample? By layer, the mean Jaccard overlap (shared / in
--   either) of the top-k sets of two samples at the same step, over all pairs with the same prompt and different seeds
--   (within) and over all pairs with different prompts (across); a pair's overlap is its mean over the chosen steps.
--   Pairs share samples, so 95 % intervals are over prompts: Student's t with the jackknife, which leaves out one
--   prompt with all its pairs, within 0 to 1; null with fewer than 5 prompts with pairs, and if all are equal. Cells
--   whose hidden state or ratio is not finite are excluded and counted.
-- grain: one row per layer
-- shown: layer, n_samples, k, within, across, chance, core
-- param step: int = -1 -- only this step; -1 for all
-- param stream: str = image {image, text} -- stream of the tokens
-- param branch: str = cond {cond, uncond} -- guidance branch
-- param max_samples: int = 256 -- maximum number of samples, since pairs grow quadratically; 0 for all. Samples are
--   chosen in order of the prompt's MD5, then of seed, so seeds of a prompt stay together, and the choice does not
--   depend on the manifest's order. All numbers are exact for the chosen samples
-- column layer: index -- global block index
-- column n_samples: samples -- samples used
-- column n_prompts: prompts -- different prompts among them
-- column k: channels -- size of the top-k sets; the largest recorded
-- column within: 0 to 1 -- mean overlap of two seeds of one prompt; null without such a pair
-- column within_low: 0 to 1 -- lower end of its interval
-- column within_high: 0 to 1 -- upper end of its interval
-- column n_pairs_within: pairs -- number of pairs of samples
-- column across: 0 to 1 -- mean overlap of two prompts; null without such a pair
-- column across_low: 0 to 1 -- lower end of its interval
-- column across_high: 0 to 1 -- upper end of its interval
-- column n_pairs_across: pairs -- number of pairs of samples
-- column chance: 0 to 1 -- expected overlap of two random k-sets of all channels (hypergeometric, exact)
-- column core: channels -- channels in the top-k of every sample at every chosen step
-- column highest_frequency: 0 to 1 -- share of cells with the most frequent channel in the top-k (the largest of all
--   channels', so it has no interval; massive_channels has each channel's)
-- column n_nonfinite: cells -- cells excluded here
with track_cells as not materialized (
    select layer, step, sample, top_channels, if(nonfinite = 0, isfinite(ratio), false) as usable
    from cells
    where stream = $stream and branch = $branch and ($step = -1 or step = $step)
),

taken as (
    select sample, dense_rank() over (order by md5(prompt), prompt) as prompt
    from samples
    where sample in (select sample from track_cells)
    qualify $max_samples = 0 or row_number() over (order by md5(prompt), prompt, seed, sample) <= $max_samples
),

chosen as (
    select layer, step, sample, prompt, top_channels, usable
    from track_cells
    join taken using (sample)
),

layers as (
    select
        layer,
        count(distinct sample) filter (usable) as n_samples,
        count(distinct prompt) filter (usable) as n_prompts,
        count(*) filter (usable) as n_cells,
        count(*) filter (not usable) as n_nonfinite,
        coalesce(max(len(top_channels)) filter (usable), 0) as k
    from chosen
    group by layer
),

frequencies as (
    select layer, step, channel, count(*) as n
    from (select layer, step, unnest(top_channels) as channel from chosen where usable)
    group by layer, step, channel
),

-- Each step's channels are numbered, so that a set is stored in the bits of a number, one for each of the 126 most
-- frequent channels; further channels are stored in a bit string.
numbered as (
    select
        layer,
        step,
        list(channel order by n desc, channel)[:126] as frequent,
        list(channel order by n desc, channel)[127:] as rare
    from frequencies
    group by layer, step
),

sets as (
    select
        layer,
        step,
        sample,
        prompt,
        len(top_channels) as k,
        coalesce(
            list_bit_or([1::hugeint << (list_position(frequent, c) - 1) for c in top_channels]),
            0
        ) as frequent_bits,
        if(
            rare = [],
            null,
            list_bit_or([
                set_bit(repeat('0', len(rare))::bit, list_position(rare, c) - 1, 1)
                for c in top_channels
                if list_contains(rare, c)
            ])
        ) as rare_bits
    from chosen
    join numbered using (layer, step)
    where usable
),

-- Lists by step, with null for steps that a sample lacks.
by_sample as (
    select
        layer,
        sample,
        any_value(prompt) as prompt,
        any_value(k) as k,
        list(frequent_bits order by step) as frequent_bits,
        list(rare_bits order by step) as rare_bits,
        count(rare_bits) as n_rare
    from (select layer, step from numbered)
    join (select distinct layer, sample from sets) using (layer)
    left join sets using (layer, step, sample)
    group by layer, sample
),

pairs as (
    select
        a.layer,
        a.prompt as prompt_a,
        b.prompt as prompt_b,
        list_avg([
            shared / (a.k + b.k - shared)
            for shared in if(
                a.n_rare = 0 or b.n_rare = 0,
                [bit_count(bits & b.frequent_bits[i]) for bits, i in a.frequent_bits],
                [
                    bit_count(bits & b.frequent_bits[i]) + coalesce(bit_count(a.rare_bits[i] & b.rare_bits[i]), 0)
                    for bits, i in a.frequent_bits
                ]
            )
        ]) as jaccard
    from by_sample as a
    join by_sample as b on a.layer = b.layer and a.sample < b.sample
),

-- Every pair counts once for each of its prompts: one prompt within, two across.
by_prompt as (
    select layer, prompt_a = prompt_b as within, prompt_a as prompt, sum(jaccard) as total, count(*) as n
    from (
        select layer, prompt_a, prompt_b, jaccard from pairs
        union all
        select layer, prompt_b, prompt_a, jaccard from pairs where prompt_a <> prompt_b
    )
    where jaccard is not null
    group by layer, prompt_a = prompt_b, prompt_a
),

-- Threads add in any order, which changes the last digits. Rounding makes the result reproducible.
totals as (
    select layer, within, sum(total) / if(within, 1, 2) as total, sum(n) / if(within, 1, 2) as n_pairs
    from by_prompt
    group by layer, within
),

estimates as (
    select
        layer,
        within,
        round(any_value(totals.total) / any_value(n_pairs), 9) as mean,
        any_value(n_pairs) as n_pairs,
        count(*) as n_clusters,
        round(
            (count(*) - 1) / sqrt(count(*))
            * stddev_samp((totals.total - by_prompt.total) / nullif(n_pairs - n, 0)),
            9
        ) as error
    from by_prompt
    join totals using (layer, within)
    group by layer, within
),

commonest as (
    select layer, max(n) as n, count(*) filter (n = n_cells) as core
    from (select layer, channel, sum(n) as n from frequencies group by layer, channel)
    join layers using (layer)
    group by layer
),

-- Two random k-sets of D channels share i with probability C(k, i) C(D - k, k - i) / C(D, k).
shared_by_chance as (
    select
        k,
        i,
        exp(
            2 * lgamma(k + 1) - lgamma(i + 1) - 2 * lgamma(k - i + 1)
            + 2 * lgamma(n_channels - k + 1) - lgamma(n_channels - 2 * k + i + 1) - lgamma(n_channels + 1)
        ) as probability
    from (select distinct k, n_channels, unnest(range(k + 1)) as i from layers, run where k > 0)
    where n_channels - 2 * k + i >= 0
),

chances as (
    select k, sum(probability * i / (2 * k - i)) as chance
    from shared_by_chance
    group by k
)

select
    layers.layer,
    layers.n_samples,
    layers.n_prompts,
    layers.k,
    w.mean as within,
    interval_low(w.mean, w.error, w.n_clusters, 0, 1) as within_low,
    interval_high(w.mean, w.error, w.n_clusters, 0, 1) as within_high,
    coalesce(w.n_pairs, 0)::bigint as n_pairs_within,
    x.mean as across,
    interval_low(x.mean, x.error, x.n_clusters, 0, 1) as across_low,
    interval_high(x.mean, x.error, x.n_clusters, 0, 1) as across_high,
    coalesce(x.n_pairs, 0)::bigint as n_pairs_across,
    chances.chance,
    coalesce(commonest.core, 0) as core,
    commonest.n / layers.n_cells as highest_frequency,
    layers.n_nonfinite
from layers
left join estimates as w on w.layer = layers.layer and w.within
left join estimates as x on x.layer = layers.layer and not x.within
left join chances on chances.k = layers.k
left join commonest on commonest.layer = layers.layer
order by layers.layer
