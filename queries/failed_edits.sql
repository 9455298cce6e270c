-- purpose: Which images of a sweep failed, and why; which were not edited, because their condition selected no token or
--   no channel; and which had latents that were not finite? All of them are excluded from means and tests. Items of
--   tasks without a record are not listed: sweep.n_tasks_done has the number of tasks with one.
-- of: sweep
-- as: failures
-- grain: one row per image that is excluded from means
-- shown: item, role, condition, prompt, reason, error
-- column item: index -- row of the sweep's items, 0-based
-- column item_id: id -- id of the sample or pair
-- column task: index -- the task that wrote it
-- column attempt: count -- number of this attempt at the task, from 1
-- column role: name -- edited, undisturbed or source
-- column condition: index -- index of the condition in the sweep; null for unedited rows
-- column prompt: text -- the sample's prompt
-- column source_prompt: text -- the source's prompt; null if there is none
-- column seed: seed -- the sample's seed
-- column reason: name -- failed, not edited or not finite
-- column error: text -- why it failed; null if it did not
-- column nonfinite_steps: steps -- steps after which its latents contained a NaN or an infinity
select
    item,
    item_id,
    task,
    attempt,
    role,
    condition,
    prompt,
    source_prompt,
    seed,
    case when status = 'failed' then 'failed' when nonfinite_steps > 0 then 'not finite' else 'not edited' end as reason,
    error,
    nonfinite_steps
from edits
where
    status = 'failed'
    or nonfinite_steps > 0
    or (
        role = 'edited'
        and action in ('zero', 'mean', 'shuffle', 'transport', 'guide')
        and amount != 0
        and (k > 0 or selection = 'all')
        and (n_channels = 0 or token_share = 0 or (n_channels is null and mse = 0 and action != 'guide'))
    )
order by item, condition nulls first, role
