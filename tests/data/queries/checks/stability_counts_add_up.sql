-- Frequencies that are not their counts' ratio, and cells whose channels are not k for each sample.
with counts as (
    select layer, step, score, k, sum(n_selected) as total, max(n_samples) as n_samples
    from stability_channels
    group by layer, step, score, k
)

select layer, step, score, k, channel, n_selected, n_samples, frequency
from stability_channels
where
    n_selected not between 1 and n_samples
    or abs(frequency - n_selected / n_samples) > 1e-6
union all
select layer, step, score, k, null, total, n_samples, null
from counts
where total <> k * n_samples
order by layer, step, score, k, channel
