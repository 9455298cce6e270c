-- purpose: Where do the top channels have a larger effect than fair controls? Zeroing small channels removes less than
--   zeroing large ones, so fair controls are energy-matched other channels (matched), or norm-matched random channels
--   (scaled). Contrasts of the top (or listed) channels minus such a control, paired by sample, whose interval excludes
--   zero on the requested side and whose q is at most max_q. Intervals are 95 % over prompts; q is Benjamini and
--   Hochberg's over all tests of the sweep. Energy share and change of both sides show how well they were matched.
-- of: sweep
-- needs: effects
-- grain: one row per (setting, control) where the top channels have a larger effect
-- shown: control, k, layers_name, n_items, mean, low, high, q
-- param metric: str = mse -- a column of edits, nonfinite_steps to lpips
-- param side: str = higher {higher, lower} -- direction of the metric for a larger change: mse higher, ssim lower
-- param max_q: float = 0.05 -- the largest q to report, 0 to 1
-- param each: bool = false -- only settings whose top channels exceed each of their matched and scaled controls
-- param top: int = 50 -- maximum number of contrasts, the largest difference first; 0 for all
-- column condition: index -- index in the sweep of the first condition of the top channels
-- column control_condition: index -- index in the sweep of the control's first condition
-- column control: name -- matched or scaled
-- column action: name -- as in conditions
-- column amount: of the edit -- as in conditions
-- column k: channels -- as in conditions
-- column scores_from: name -- as in conditions
-- column layers_name: layers -- as in conditions
-- column steps_name: steps -- as in conditions
-- column streams: name -- as in conditions
-- column tokens: name -- as in conditions
-- column placement: name -- as in conditions
-- column n_items: items -- number of samples or pairs compared
-- column n_prompts: prompts -- different prompts among them
-- column top_mean: of the metric -- mean of the top channels' edits
-- column control_mean: of the metric -- mean of the control's edits
-- column mean: of the metric -- mean difference, top minus control
-- column low: of the metric -- lower end of its interval
-- column high: of the metric -- upper end of its interval
-- column d_z: standard deviations -- effect size over prompts
-- column p: 0 to 1 -- Wilcoxon's signed-rank test over prompts
-- column q: 0 to 1 -- false discovery rate at which it passes
-- column top_energy_share: 0 to 1 -- mean share of the squared values in the top channels
-- column control_energy_share: 0 to 1 -- same for the control
-- column top_change: ratio -- mean norm of the top channels' edit divided by the norm of the hidden state
-- column control_change: ratio -- same for the control
-- column n_exceeded: controls -- matched and scaled controls of the setting that the top channels exceed
-- column n_controls: controls -- matched and scaled controls of the setting
with compared as (
    select
        *,
        coalesce(q <= $max_q and if($side = 'higher', low > 0, high < 0), false) as exceeds
    from effects_contrasts
    where selection in ('matched', 'scaled') and metric = $metric
),

doses as (
    select
        condition,
        counterpart_condition,
        max(effect_mean) filter (metric = 'energy_share') as top_energy_share,
        max(control_mean) filter (metric = 'energy_share') as control_energy_share,
        max(effect_mean) filter (metric = 'change') as top_change,
        max(control_mean) filter (metric = 'change') as control_change
    from effects_contrasts
    group by condition, counterpart_condition
),

counted as (
    select
        *,
        count(*) filter (exceeds) over (partition by counterpart_condition) as n_exceeded,
        count(*) over (partition by counterpart_condition) as n_controls
    from compared
)

select
    counterpart_condition as condition,
    condition as control_condition,
    selection as control,
    action,
    amount,
    k,
    scores_from,
    layers_name,
    steps_name,
    streams,
    tokens,
    placement,
    n_items,
    n_prompts,
    effect_mean as top_mean,
    control_mean,
    mean,
    low,
    high,
    d_z,
    p,
    q,
    top_energy_share,
    control_energy_share,
    top_change,
    control_change,
    n_exceeded,
    n_controls
from counted
join doses using (condition, counterpart_condition)
where exceeds and (not $each or n_exceeded = n_controls)
qualify $top = 0 or row_number() over (order by abs(mean) desc, counterpart_condition, condition) <= $top
order by abs(mean) desc, counterpart_condition, counted.condition
