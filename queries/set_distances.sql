-- purpose: How far is the set of a condition's images from the set of unedited ones, by FID, KID and CMMD on CLIP or
--   DINO embeddings? Single images may change while the set remains typical of the model, and a set may shift while
--   every image remains close to its own baseline. Each distance comes with its ratio to that of the control with the
--   same settings. Only sweeps with --metric clip=... or dino=... have rows.
-- of: sweep
-- needs: effects
-- grain: one row per (condition, model)
-- shown: selection, trial, k, layers_name, model, kernel, cmmd, frechet
-- param model: str = any {any, clip, dino} -- embedding model
-- param control: str = random {random, redrawn, bottom, matched, scaled, all} -- denominator of the ratios
-- param top: int = 50 -- maximum number of rows, largest CMMD first; 0 for all
-- column condition: index -- index of the condition in the sweep
-- column action: name -- as in conditions
-- column amount: of the edit -- as in conditions
-- column selection: name -- as in conditions
-- column trial: index -- as in conditions
-- column k: channels -- as in conditions
-- column layers_name: layers -- as in conditions
-- column steps_name: steps -- as in conditions
-- column tokens: name -- as in conditions
-- column model: name -- clip or dino
-- column n_edited: images -- number of the condition's images
-- column n_undisturbed: images -- number of unedited images that they are compared with
-- column frechet: squared distance -- Frechet distance, the formula of FID; null unless there are more images than
--   features
-- column kernel: squared distance -- KID, unbiased: may be slightly below 0
-- column cmmd: squared distance x 1000 -- CMMD to the unedited images
-- column cmmd_over_control: ratio -- ratio to the mean of the control's trials; null if the sweep has no such control
with controls as (
    select
        action,
        amount,
        k,
        layers_name,
        steps_name,
        tokens,
        model,
        avg(cmmd) as control_cmmd
    from effects_sets
    where selection = $control
    group by all
)

select
    condition,
    action,
    amount,
    selection,
    trial,
    k,
    layers_name,
    steps_name,
    tokens,
    model,
    n_edited,
    n_undisturbed,
    frechet,
    kernel,
    cmmd,
    if(selection = $control, null, cmmd / nullif(control_cmmd, 0)) as cmmd_over_control
from effects_sets
left join controls using (action, amount, k, layers_name, steps_name, tokens, model)
where $model in ('any', model)
qualify $top = 0 or row_number() over (order by cmmd desc, condition, model) <= $top
order by cmmd desc, condition, model
