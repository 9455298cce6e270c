-- Shares and overlaps below 0 or above 1, with room for rounding.
with shares as (
    select 'stability_channels frequency' as what, layer, step, frequency as value from stability_channels
    union all
    select 'stability_pairs jaccard', layer, step, jaccard from stability_pairs
    union all
    select 'stability_pairs chance', layer, step, chance from stability_pairs
    union all
    select 'stability_agreement jaccard', layer, step, jaccard from stability_agreement
    union all
    select 'alignment_samples ' || name, layer, step, value
    from alignment_samples
    unpivot (value for name in (iou, complement_iou, best_iou, chance_iou, area, mask_area, energy_share, nmi))
    union all
    select 'concentration_cells ' || name, layer, step, value
    from concentration_cells
    unpivot (value for name in (gini, register_share, registers_on_border, border_share))
    union all
    select 'masks_samples area', null, null, area from masks_samples
)

select what, layer, step, value
from shares
where isfinite(value) and not value between -1e-6 and 1 + 1e-6
order by what, layer, step, value
