-- purpose: Which samples have a given channel among their most massive ones, but a foreground that misses the subject?
--   Cells of the chosen layers and steps in which the channel is in the top ranks and the IoU of the top channels'
--   foreground with the subject is below max_iou. For comparison: chance, and the IoU of the complement and of the
--   better sign; a high one means that the clusters found the subject with the wrong sign. Cells without an IoU, in
--   which both masks are empty, are excluded and counted.
-- needs: alignment
-- grain: one row per sample with such a cell, at the cell of its lowest IoU
-- shown: sample, prompt, layer, step, iou, best_iou, chance_iou, n_misaligned
-- param channel: int = -1 -- index of the channel; -1 for all cells, regardless of channel
-- param rank: int = 3 -- largest rank of the channel, by score
-- param first_layer: int = 0 -- first layer
-- param last_layer: int = -1 -- last layer, inclusive; -1 for all from first_layer on
-- param step: int = -1 -- only this step; -1 for all
-- param max_iou: float = 0.1 -- upper limit of the IoU, 0 to 1
-- param n_clusters: int = 2 -- K of K-means
-- param branch: str = cond {cond, uncond} -- guidance branch that was analyzed
-- param top: int = 20 -- maximum number of samples, the lowest IoU first; 0 for all
-- column sample_id: id -- the manifest's id
-- column sample: index -- index on the store's sample axis, 0-based
-- column prompt: text -- the sample's prompt
-- column seed: seed -- the sample's seed
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column rank: rank -- the channel's rank in the top-k of that cell; 1 is the largest score; null without a channel
-- column iou: IoU -- IoU of the foreground
-- column best_iou: IoU -- IoU of the best union of clusters; for 2, the better of foreground and complement
-- column complement_iou: IoU -- IoU of everything but the foreground
-- column chance_iou: IoU -- IoU of independent masks with these two areas
-- column area: 0 to 1 -- share of tokens that are foreground
-- column mask_area: 0 to 1 -- share of the image that the subject covers
-- column n_misaligned: cells -- the sample's cells with the channel in the top ranks and an IoU below max_iou
-- column n_cells: cells -- the sample's cells with the channel in the top ranks and an IoU
-- column n_without_iou: cells -- the sample's cells with the channel in the top ranks and no IoU
with chosen as (
    select sample, layer, step, list_position(top_channels, $channel) as rank
    from cells
    where
        stream = 'image'
        and branch = $branch
        and layer >= $first_layer
        and ($last_layer = -1 or layer <= $last_layer)
        and ($step = -1 or step = $step)
        and ($channel = -1 or list_position(top_channels, $channel) <= $rank)
),

aligned as (
    select
        sample_id,
        sample,
        layer,
        step,
        if(isfinite(iou), iou, null) as iou,
        best_iou,
        complement_iou,
        chance_iou,
        area,
        mask_area
    from alignment_samples
    where
        selection = 'top'
        and n_clusters = $n_clusters
        and layer >= $first_layer
        and ($last_layer = -1 or layer <= $last_layer)
        and ($step = -1 or step = $step)
),

compared as (
    select aligned.*, rank
    from aligned
    join chosen using (sample, layer, step)
),

counts as (
    select
        sample,
        count(*) filter (iou < $max_iou) as n_misaligned,
        count(iou) as n_cells,
        count(*) - count(iou) as n_without_iou
    from compared
    group by sample
),

lowest as (
    select *
    from compared
    where iou < $max_iou
    qualify row_number() over (partition by sample order by iou, step, layer) = 1
),

reported as (
    select *
    from lowest
    qualify $top = 0 or row_number() over (order by iou, sample) <= $top
),

-- Its other columns come from the user's source, and may have the same names as columns of this query.
prompts as (
    select sample_id, prompt, seed
    from manifest
)

select
    sample_id,
    sample,
    prompt,
    seed,
    layer,
    step,
    rank,
    iou,
    best_iou,
    complement_iou,
    chance_iou,
    area,
    mask_area,
    n_misaligned,
    n_cells,
    n_without_iou
from reported
join counts using (sample)
join prompts using (sample_id)
order by iou, sample
