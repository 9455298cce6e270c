-- purpose: Which prompts does an edit flip? Edited images that no longer show an attribute of the prompt that the
--   unedited image shows: shape, color, size, position or background of the shapes world. For a transport, also which
--   of these are now the source's. An attribute that the unedited image lacks cannot flip. n_flipped and
--   n_pictures count the condition's images that flip, and those that could: their unedited image shows the requested
--   attributes.
-- of: sweep
-- grain: one row per (item, condition) whose image flips
-- shown: item, prompt, selection, k, layers_name, lost, taken_from_source
-- param attribute: str = any {any, shape, colour, size, position, background} -- attribute that must have flipped
-- param taken: bool = false -- only attributes that are now the source's
-- param condition: int = -1 -- index of a condition in the sweep; -1 for all
-- param top: int = 100 -- maximum number of images, most lost attributes first; 0 for all
-- column item: index -- row of the sweep's items, 0-based
-- column item_id: id -- id of the sample or pair
-- column sample_id: id -- the manifest's id of the sample, the target of a pair
-- column prompt: text -- the sample's prompt
-- column source_prompt: text -- the source's prompt; null if there is none
-- column seed: seed -- the sample's seed
-- column condition: index -- index of the condition in the sweep
-- column condition_id: id -- id of the condition
-- column action: name -- as in conditions
-- column amount: of the edit -- as in conditions
-- column selection: name -- as in conditions
-- column trial: index -- as in conditions
-- column k: channels -- as in conditions
-- column scores_from: name -- as in conditions
-- column layers_name: layers -- as in conditions
-- column steps_name: steps -- as in conditions
-- column tokens: name -- as in conditions
-- column lost: names -- the flipped attributes, in alphabetical order
-- column taken_from_source: names -- those of them that are now the source's; null if none is
-- column n_lost: attributes -- number of flipped attributes
-- column n_taken: attributes -- number of those that are now the source's
-- column n_flipped: images -- the condition's images that flip
-- column n_pictures: images -- the condition's images that could flip
with attributes as (
    select
        item,
        role,
        condition_id,
        unnest(['shape', 'colour', 'size', 'position', 'background']) as attribute,
        unnest([shows_shape, shows_colour, shows_size, shows_position, shows_background]) as shows_it,
        unnest([source_shape, source_colour, source_size, source_position, source_background]) as shows_sources
    from edits
),

before as (
    select distinct item, attribute
    from attributes
    where role = 'undisturbed' and shows_it and ($attribute = 'any' or attribute = $attribute)
),

judged as (
    select
        item,
        condition_id,
        attribute,
        not shows_it and (not $taken or coalesce(shows_sources, false)) as flips,
        coalesce(shows_sources, false) as is_sources
    from attributes
    join before using (item, attribute)
    where role = 'edited' and shows_it is not null
),

by_picture as (
    select
        item,
        condition_id,
        string_agg(attribute, ', ' order by attribute) filter (flips) as lost,
        string_agg(attribute, ', ' order by attribute) filter (flips and is_sources) as taken_from_source,
        count(*) filter (flips) as n_lost,
        count(*) filter (flips and is_sources) as n_taken
    from judged
    group by item, condition_id
),

counted as (
    select
        *,
        count(*) filter (n_lost > 0) over (partition by condition_id) as n_flipped,
        count(*) over (partition by condition_id) as n_pictures
    from by_picture
)

select
    item,
    item_id,
    sample_id,
    prompt,
    source_prompt,
    seed,
    condition,
    condition_id,
    action,
    amount,
    selection,
    trial,
    k,
    scores_from,
    layers_name,
    steps_name,
    tokens,
    lost,
    taken_from_source,
    n_lost,
    n_taken,
    n_flipped,
    n_pictures
from counted
join edits using (item, condition_id)
where n_lost > 0 and ($condition = -1 or condition = $condition)
qualify $top = 0 or row_number() over (order by n_lost desc, item, condition) <= $top
order by n_lost desc, item, condition
