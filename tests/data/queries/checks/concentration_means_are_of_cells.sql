-- Means of concentration that differ from those of the cells' finite values, or are of another number of samples.
with by_cell as (
    select
        step,
        layer,
        unnest(['ratio', 'gini', 'n_registers', 'elevation', 'register_norm_ratio']) as metric,
        unnest([ratio, gini, n_registers, elevation, register_norm_ratio]) as value
    from concentration_cells
),

expected as (
    select
        step,
        layer,
        metric,
        count(*) filter (isfinite(value)) as n_samples,
        avg(value) filter (isfinite(value)) as mean
    from by_cell
    group by step, layer, metric
)

select step, layer, metric, e.n_samples, m.n_samples as given_samples, e.mean, m.mean as given_mean
from expected as e
left join concentration_means as m using (step, layer, metric)
where
    m.n_samples is distinct from e.n_samples
    or (e.n_samples > 0 and not coalesce(abs(m.mean - e.mean) <= 1e-5 * greatest(abs(e.mean), 1), false))
order by step, layer, metric
