-- purpose: Which settings of a sweep change a metric most, and at what cost? Means over items of every setting, sorted
--   by size in either direction, with the level of the unedited images if they have the metric. For transports, the
--   cost is included: of the attributes in which target and source differ, the shares that the image takes from the
--   source and keeps of the target; the remainder to 1 shows neither. on_front marks settings that no other one matches
--   or exceeds in both shares. Intervals are 95 % over prompts.
-- of: sweep
-- needs: effects
-- grain: one row per setting: conditions that differ in trial only
-- shown: action, selection, k, layers_name, steps_name, n_items, mean, undisturbed
-- param metric: str = mse -- a column of edits, n_channels to lpips
-- param direction: str = highest {highest, lowest} -- which means to list first
-- param controls: bool = true -- whether to list controls and baselines, and to include them in on_front
-- param front: bool = false -- only settings with on_front; for transports
-- param top: int = 20 -- maximum number of settings; 0 for all
-- column condition: index -- index in the sweep of the setting's first condition
-- column action: name -- as in conditions
-- column amount: of the edit -- as in conditions
-- column selection: name -- as in conditions
-- column k: channels -- as in conditions
-- column scores_from: name -- as in conditions
-- column layers_name: layers -- as in conditions
-- column steps_name: steps -- as in conditions
-- column streams: name -- as in conditions
-- column tokens: name -- as in conditions
-- column placement: name -- as in conditions
-- column n_items: items -- samples or pairs that have the metric
-- column n_prompts: prompts -- different prompts among them
-- column n_failed: images -- failed images of the setting
-- column mean: of the metric -- mean over items, each item's trials averaged first
-- column low: of the metric -- lower end of its interval
-- column high: of the metric -- upper end of its interval
-- column undisturbed: of the metric -- mean of the unedited images; null if the metric compares with them
-- column change: ratio -- size of the edits: mean norm of the edit divided by the norm of the hidden state
-- column source_taken: 0 to 1 -- mean share of attributes taken from the source
-- column source_taken_low: 0 to 1 -- lower end of its interval
-- column source_taken_high: 0 to 1 -- upper end of its interval
-- column target_kept: 0 to 1 -- mean share of attributes kept of the target
-- column target_kept_low: 0 to 1 -- lower end of its interval
-- column target_kept_high: 0 to 1 -- upper end of its interval
-- column on_front: bool -- no listed setting is at least as high in both shares and higher in one; null without shares
with settings as (
    select *
    from effects_means
    where condition is not null and ($controls or selection in ('top', 'listed'))
),

prices as (
    select
        condition,
        max(mean) filter (metric = 'change') as change,
        max(mean) filter (metric = 'source_taken') as source_taken,
        max(low) filter (metric = 'source_taken') as source_taken_low,
        max(high) filter (metric = 'source_taken') as source_taken_high,
        max(mean) filter (metric = 'target_kept') as target_kept,
        max(low) filter (metric = 'target_kept') as target_kept_low,
        max(high) filter (metric = 'target_kept') as target_kept_high
    from settings
    group by condition
),

beaten as (
    select distinct mine.condition
    from prices as mine
    join prices as other
        on
            other.source_taken >= mine.source_taken
            and other.target_kept >= mine.target_kept
            and (other.source_taken > mine.source_taken or other.target_kept > mine.target_kept)
),

fronts as (
    select
        *,
        if(
            source_taken is null or target_kept is null,
            null,
            condition not in (select condition from beaten)
        ) as on_front
    from prices
),

levels as (
    select mean as undisturbed
    from effects_means
    where action = 'undisturbed' and metric = $metric
)

select
    condition,
    action,
    amount,
    selection,
    k,
    scores_from,
    layers_name,
    steps_name,
    streams,
    tokens,
    placement,
    n_items,
    n_prompts,
    n_failed,
    mean,
    low,
    high,
    undisturbed,
    change,
    source_taken,
    source_taken_low,
    source_taken_high,
    target_kept,
    target_kept_low,
    target_kept_high,
    on_front
from settings
join fronts using (condition)
left join levels on true
where metric = $metric and mean is not null and (not $front or on_front)
qualify
    $top = 0
    or row_number() over (order by if($direction = 'highest', -mean, mean), condition) <= $top
order by if($direction = 'highest', -mean, mean), condition
