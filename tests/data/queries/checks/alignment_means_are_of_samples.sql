-- Means that differ from those of the samples' rows, each sample's trials averaged first; cells of one of the two only.
with by_sample as (
    select
        step,
        layer,
        selection,
        n_clusters,
        sample,
        avg(iou) as iou,
        avg(chance_iou) as chance_iou,
        avg(complement_iou) as complement_iou,
        avg(best_iou) as best_iou,
        avg(area) as area,
        avg(energy_share) as energy_share
    from alignment_samples
    group by step, layer, selection, n_clusters, sample
),

random as (
    select step, layer, n_clusters, sample, iou as random_iou
    from by_sample
    where selection = 'random'
),

expected as (
    select
        step,
        layer,
        selection,
        n_clusters,
        count(*) filter (isfinite(iou)) as n_samples,
        avg(iou) filter (isfinite(iou)) as iou,
        avg(chance_iou) filter (isfinite(chance_iou)) as chance_iou,
        avg(iou - chance_iou) filter (isfinite(iou - chance_iou)) as over_chance,
        avg(iou - random_iou) filter (isfinite(iou - random_iou)) as over_random,
        avg(complement_iou) filter (isfinite(complement_iou)) as complement_iou,
        avg(best_iou) filter (isfinite(best_iou)) as best_iou,
        avg(area) as area,
        avg(energy_share) as energy_share
    from by_sample
    left join random using (step, layer, n_clusters, sample)
    group by step, layer, selection, n_clusters
),

measured as (
    select
        step,
        layer,
        selection,
        n_clusters,
        unnest([
            'n_samples',
            'iou',
            'chance_iou',
            'over_chance',
            'over_random',
            'complement_iou',
            'best_iou',
            'area',
            'energy_share'
        ]) as measure,
        unnest([
            e.n_samples,
            e.iou,
            e.chance_iou,
            e.over_chance,
            e.over_random,
            e.complement_iou,
            e.best_iou,
            e.area,
            e.energy_share
        ]) as expected,
        unnest([
            m.n_samples,
            m.iou,
            m.chance_iou,
            m.over_chance,
            m.over_random,
            m.complement_iou,
            m.best_iou,
            m.area,
            m.energy_share
        ]) as mean
    from expected as e
    full join alignment_means as m using (step, layer, selection, n_clusters)
)

select step, layer, selection, n_clusters, measure, expected, mean
from measured
where
    if(isfinite(expected), expected, null) is distinct from if(isfinite(mean), mean, null)
    and not coalesce(abs(expected - mean) <= 1e-5, false)
order by step, layer, selection, n_clusters, measure
