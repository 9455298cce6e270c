-- Intervals that do not hold their mean, which none of these bootstraps gives.
with intervals as (
    select 'alignment iou' as what, layer, step, iou as mean, iou_low as low, iou_high as high from alignment_means
    union all
    select 'alignment over_chance', layer, step, over_chance, over_chance_low, over_chance_high from alignment_means
    union all
    select 'alignment best_iou', layer, step, best_iou, best_iou_low, best_iou_high from alignment_means
    union all
    select 'concentration ' || metric, layer, step, mean, low, high from concentration_means
    union all
    select 'stability jaccard', layer, step, jaccard, jaccard_low, jaccard_high from stability_pairs
    union all
    select 'stability ' || kind, layer, step, jaccard, jaccard_low, jaccard_high from stability_agreement
)

select what, layer, step, low, mean, high
from intervals
where
    if(isfinite(mean), low > mean + 1e-5 * greatest(abs(mean), 1), false)
    or if(isfinite(mean), high < mean - 1e-5 * greatest(abs(mean), 1), false)
order by what, layer, step
