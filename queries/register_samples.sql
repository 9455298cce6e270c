-- purpose: Which samples have the most registers (tokens with an outlier norm), or the strongest? Each sample at the
--   cell with the most, or with the largest token norm ratio. In such a cell, a few tokens may account for a massive
--   channel: token_outliers counts the massive channels with at least half of their energy in registers. Cells whose
--   value is not finite are excluded and counted.
-- needs: concentration
-- grain: one row per sample
-- shown: sample, prompt, layer, step, registers, register_share, token_outliers, n_with_registers
-- param layer: int = -1 -- only this layer; -1 for all
-- param step: int = -1 -- only this step; -1 for all
-- param by: str = registers {registers, elevation} -- order of samples and cells: by number of registers, or by
--   elevation, the largest token norm / lower median token norm, which also breaks ties
-- param top: int = 20 -- maximum number of samples, largest first; 0 for all
-- column sample_id: id -- the manifest's id
-- column sample: index -- index on the store's sample axis, 0-based
-- column prompt: text -- the sample's prompt
-- column seed: seed -- the sample's seed
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column registers: tokens -- number of tokens with an outlier norm there
-- column register_share: 0 to 1 -- their share of the tokens
-- column register_norm_ratio: x median -- their mean norm / lower median token norm; null if there are none
-- column on_border: 0 to 1 -- share of them on the border of the grid; null if there are none
-- column border_share: 0 to 1 -- share of all tokens on the border: chance for on_border
-- column elevation: x median -- largest token norm / lower median token norm
-- column elevation_excised: x median -- the same without the massive channels
-- column token_outliers: channels -- massive channels with at least half of their energy in registers
-- column n_with_registers: cells -- the sample's cells with a register
-- column n_cells: cells -- the sample's cells with a finite value
-- column n_nonfinite: cells -- the sample's excluded cells
with chosen as (
    select
        sample_id,
        sample,
        layer,
        step,
        n_registers,
        register_share,
        register_norm_ratio,
        registers_on_border,
        border_share,
        elevation,
        elevation_excised,
        n_token_outliers,
        if($by = 'registers', n_registers, elevation) as value
    from concentration_cells
    where ($layer = -1 or layer = $layer) and ($step = -1 or step = $step)
),

counts as (
    select
        sample,
        count(*) filter (isfinite(value) and n_registers > 0) as n_with_registers,
        count(*) filter (isfinite(value)) as n_cells,
        count(*) filter (not isfinite(value)) as n_nonfinite
    from chosen
    group by sample
),

largest as (
    select *
    from chosen
    join counts using (sample)
    where n_cells > 0
    qualify 1 = row_number() over (
        partition by sample order by isfinite(value) desc, value desc, elevation desc, step, layer
    )
),

reported as (
    select *
    from largest
    qualify $top = 0 or row_number() over (order by value desc, elevation desc, sample) <= $top
),

-- Its other columns come from the user's source, and may have the same names as columns of this query.
prompts as (
    select sample_id, prompt, seed
    from manifest
)

select
    sample_id,
    sample,
    prompt,
    seed,
    layer,
    step,
    n_registers as registers,
    register_share,
    if(isfinite(register_norm_ratio), register_norm_ratio, null) as register_norm_ratio,
    if(isfinite(registers_on_border), registers_on_border, null) as on_border,
    border_share,
    elevation,
    elevation_excised,
    n_token_outliers as token_outliers,
    n_with_registers,
    n_cells,
    n_nonfinite
from reported
join prompts using (sample_id)
order by value desc, elevation desc, sample
