-- Rows of results whose sample the run does not have, under that id and index, as a finished one.
with named as (
    select distinct 'alignment_samples' as what, sample_id, sample from alignment_samples
    union all
    select distinct 'concentration_cells', sample_id, sample from concentration_cells
    union all
    select distinct 'masks_samples', sample_id, sample from masks_samples
)

select what, sample_id, sample
from named
anti join (select sample_id, sample from samples where status = 'done') using (sample_id, sample)
order by what, sample
