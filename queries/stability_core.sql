-- purpose: Which channels are always massive? By layer, the channels that are in the top-k of at least min_frequency of
--   the samples at every analyzed step, and the number of layers in which they are. The interval is 95 %, over prompts,
--   at the step at which the channel is selected least; null with fewer than 5 prompts, if all prompts are equal
--   (as for a channel in every sample), and at a step at which no sample selects it.
-- needs: stability
-- grain: one row per (layer, channel) of the core
-- shown: layer, channel, k, n_selected, n_samples, frequency, n_core, n_layers
-- param k: int = -1 -- size of the top-k sets; -1 for the largest one analyzed
-- param step: int = -1 -- only this step; -1 for all, in which case every step must select the channel
-- param min_frequency: float = 1.0 -- share of the samples, 0 to 1; 1 is the always-selected core
-- column layer: index -- global block index
-- column channel: index -- the channel
-- column k: channels -- size of the top-k sets
-- column n_selected: samples -- samples with the channel in their top-k, at the step with the fewest
-- column n_samples: samples -- number of samples
-- column frequency: 0 to 1 -- n_selected / n_samples
-- column frequency_low: 0 to 1 -- lower end of its interval
-- column frequency_high: 0 to 1 -- upper end of its interval
-- column n_steps: steps -- number of steps considered
-- column n_core: channels -- number of channels in the layer's core
-- column n_layers: layers -- number of layers whose core contains the channel
with chosen as (
    select layer, step, k, channel, n_selected, n_samples, frequency_low, frequency_high
    from stability_channels
    where k = if($k = -1, (select max(k) from stability_channels), $k) and ($step = -1 or step = $step)
),

layers as (
    select layer, count(distinct step) as n_steps
    from chosen
    group by layer
),

-- A channel has no row at a step where no sample selects it.
by_channel as (
    select
        layer,
        k,
        channel,
        n_steps,
        if(count(*) < n_steps, 0, min(n_selected)) as n_selected,
        if(count(*) < n_steps, null, arg_min(frequency_low, n_selected)) as frequency_low,
        if(count(*) < n_steps, null, arg_min(frequency_high, n_selected)) as frequency_high,
        max(n_samples) as n_samples
    from chosen
    join layers using (layer)
    group by layer, k, channel, n_steps
),

core as (
    select *, n_selected / n_samples as frequency
    from by_channel
    where n_selected / n_samples >= $min_frequency
)

select
    layer,
    channel,
    k,
    n_selected,
    n_samples,
    frequency,
    frequency_low,
    frequency_high,
    n_steps,
    count(*) over (partition by layer) as n_core,
    count(*) over (partition by channel) as n_layers
from core
order by layer, frequency desc, channel
