-- With two clusters, the better-signed IoU is the larger of the foreground's and the complement's.
select sample_id, step, layer, selection, trial, iou, complement_iou, best_iou
from alignment_samples
where
    n_clusters = 2
    and if(isfinite(iou) and isfinite(complement_iou), abs(best_iou - greatest(iou, complement_iou)) > 1e-6, false)
order by sample_id, step, layer, selection, trial
