-- purpose: How well does clustering tokens by massive channels localize the subject, compared with other channels? By
--   layer, the mean IoU of the clusters' foreground with the subject for every selection of channels, and chance: the
--   IoU of independent masks with the same areas. Chance is 0.2 for areas of 0.5 and 0.25, so compare an IoU with
--   chance, and consider the areas. Intervals are 95 % over prompts. A selection is null if it was not analyzed, or if
--   none of its samples has an IoU.
-- needs: alignment
-- grain: one row per layer
-- shown: layer, step, n_samples, top, random, matched, bottom, chance
-- param step: int = -1 -- denoising step; -1 for the last one analyzed
-- param n_clusters: int = 2 -- K of K-means
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column n_samples: samples -- samples with an IoU, for the selection that has the most
-- column n_prompts: prompts -- different prompts among them
-- column top: IoU -- mean over samples, for the channels with the largest scores
-- column random: IoU -- mean over samples, for random channels; each sample's trials are averaged first
-- column matched: IoU -- mean over samples, for other channels with the same energy
-- column bottom: IoU -- mean over samples, for the channels with the smallest scores
-- column all_channels: IoU -- mean over samples, for all channels
-- column pca: IoU -- mean over samples, for as many principal components as top has channels
-- column chance: IoU -- mean over samples of the IoU of independent masks with top's areas
-- column complement: IoU -- mean IoU of the complement of top's foreground: exceeds top if the subject is low in these
-- column best: IoU -- mean of top's best union of clusters (for 2, the better sign): oracle, uses the ground truth
-- column area: 0 to 1 -- mean share of tokens in top's foreground
-- column mask_area: 0 to 1 -- mean share of the image that the subject covers
-- column over_random: IoU -- mean of top minus random, paired by sample
-- column over_random_low: IoU -- lower end of its interval
-- column over_random_high: IoU -- upper end of its interval
-- column top_low: IoU -- lower end of top's interval
-- column top_high: IoU -- upper end of top's interval
-- column random_low: IoU -- lower end of random's interval
-- column random_high: IoU -- upper end of random's interval
-- column matched_low: IoU -- lower end of matched's interval
-- column matched_high: IoU -- upper end of matched's interval
-- column bottom_low: IoU -- lower end of bottom's interval
-- column bottom_high: IoU -- upper end of bottom's interval
-- column all_channels_low: IoU -- lower end of all_channels's interval
-- column all_channels_high: IoU -- upper end of all_channels's interval
-- column pca_low: IoU -- lower end of pca's interval
-- column pca_high: IoU -- upper end of pca's interval
-- column complement_low: IoU -- lower end of complement's interval
-- column complement_high: IoU -- upper end of complement's interval
-- column best_low: IoU -- lower end of best's interval
-- column best_high: IoU -- upper end of best's interval
with chosen as (
    select *
    from alignment_means
    where n_clusters = $n_clusters and step = if($step = -1, (select max(step) from alignment_means), $step)
)

select
    layer,
    step,
    max(n_samples) as n_samples,
    max(n_prompts) as n_prompts,
    max(if(isfinite(iou), iou, null)) filter (selection = 'top') as top,
    max(if(isfinite(iou), iou, null)) filter (selection = 'random') as random,
    max(if(isfinite(iou), iou, null)) filter (selection = 'matched') as matched,
    max(if(isfinite(iou), iou, null)) filter (selection = 'bottom') as bottom,
    max(if(isfinite(iou), iou, null)) filter (selection = 'all') as all_channels,
    max(if(isfinite(iou), iou, null)) filter (selection = 'pca') as pca,
    max(if(isfinite(chance_iou), chance_iou, null)) filter (selection = 'top') as chance,
    max(if(isfinite(complement_iou), complement_iou, null)) filter (selection = 'top') as complement,
    max(if(isfinite(best_iou), best_iou, null)) filter (selection = 'top') as best,
    max(if(isfinite(area), area, null)) filter (selection = 'top') as area,
    max(if(isfinite(mask_area), mask_area, null)) filter (selection = 'top') as mask_area,
    max(if(isfinite(over_random), over_random, null)) filter (selection = 'top') as over_random,
    max(if(isfinite(over_random_low), over_random_low, null)) filter (selection = 'top') as over_random_low,
    max(if(isfinite(over_random_high), over_random_high, null)) filter (selection = 'top') as over_random_high,
    max(if(isfinite(iou_low), iou_low, null)) filter (selection = 'top') as top_low,
    max(if(isfinite(iou_high), iou_high, null)) filter (selection = 'top') as top_high,
    max(if(isfinite(iou_low), iou_low, null)) filter (selection = 'random') as random_low,
    max(if(isfinite(iou_high), iou_high, null)) filter (selection = 'random') as random_high,
    max(if(isfinite(iou_low), iou_low, null)) filter (selection = 'matched') as matched_low,
    max(if(isfinite(iou_high), iou_high, null)) filter (selection = 'matched') as matched_high,
    max(if(isfinite(iou_low), iou_low, null)) filter (selection = 'bottom') as bottom_low,
    max(if(isfinite(iou_high), iou_high, null)) filter (selection = 'bottom') as bottom_high,
    max(if(isfinite(iou_low), iou_low, null)) filter (selection = 'all') as all_channels_low,
    max(if(isfinite(iou_high), iou_high, null)) filter (selection = 'all') as all_channels_high,
    max(if(isfinite(iou_low), iou_low, null)) filter (selection = 'pca') as pca_low,
    max(if(isfinite(iou_high), iou_high, null)) filter (selection = 'pca') as pca_high,
    max(if(isfinite(complement_iou_low), complement_iou_low, null)) filter (selection = 'top') as complement_low,
    max(if(isfinite(complement_iou_high), complement_iou_high, null)) filter (selection = 'top') as complement_high,
    max(if(isfinite(best_iou_low), best_iou_low, null)) filter (selection = 'top') as best_low,
    max(if(isfinite(best_iou_high), best_iou_high, null)) filter (selection = 'top') as best_high
from chosen
group by layer, step
order by layer
