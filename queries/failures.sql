-- purpose: Which samples failed, why, and where did their hidden states first become non-finite? Cells of all streams
--   and branches count, since any non-finite cell fails its sample. Samples of tasks without a record are not listed:
--   run.n_tasks_done has the number of tasks with one.
-- grain: one row per failed sample
-- shown: sample, attempt, prompt, seed, error, n_nonfinite
-- column sample_id: id -- the manifest's id
-- column sample: index -- index on the store's sample axis, 0-based
-- column task: index -- the task that wrote it
-- column attempt: count -- number of this attempt at the task, from 1
-- column prompt: text -- the sample's prompt
-- column seed: seed -- the sample's seed
-- column error: text -- why it failed
-- column n_nonfinite: cells -- cells whose hidden state contains a NaN or an infinity
-- column first_step: index -- step of the first such cell; null without one
-- column first_layer: index -- lowest layer that has such a cell at that step; null without one
with nonfinite_cells as (
    select
        sample,
        count(*) as n_nonfinite,
        min(step) as first_step,
        arg_min(layer, struct_pack(step := step, layer := layer)) as first_layer
    from cells
    where nonfinite > 0
    group by sample
)

select
    sample_id,
    sample,
    task,
    attempt,
    prompt,
    seed,
    error,
    coalesce(n_nonfinite, 0) as n_nonfinite,
    first_step,
    first_layer
from samples
left join nonfinite_cells using (sample)
where status = 'failed'
order by sample
