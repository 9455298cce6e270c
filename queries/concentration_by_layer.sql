-- purpose: How concentrated is the energy, and are the outliers channels or tokens? By layer, means over samples with
--   their 95 % intervals over prompts: ratio of the largest channel to the median, energy share of the top k, and
--   registers (tokens with an outlier norm). Channel outliers are large at every token; if token_outliers is close to
--   massive_channels, registers explain them. Samples whose value is not finite are excluded; n_samples counts the
--   rest.
-- needs: concentration
-- grain: one row per layer
-- shown: layer, step, n_samples, ratio, energy_share, effective_channels, massive_channels, registers
-- param step: int = -1 -- denoising step; -1 for the last one analyzed
-- param k: int = 8 -- k of energy_share; one of the analysis' --shares, otherwise null
-- column layer: index -- global block index
-- column step: index -- denoising step, 0-based
-- column n_samples: samples -- number of samples with a finite value, for the measure with the fewest
-- column ratio: x median -- mean over samples, largest score / lower median score of all channels
-- column energy_share: 0 to 1 -- mean over samples, share of the squared values in the top k channels
-- column effective_channels: channels -- mean over samples, effective number of channels that hold the squared
--   values
-- column massive_channels: channels -- mean over samples, channels that score at least the threshold times the median
-- column registers: tokens -- mean over samples, tokens with an outlier norm
-- column token_outliers: channels -- mean over samples, massive channels with at least half of their energy in
--   registers
-- column elevation: x median -- mean over samples, largest token norm / lower median token norm
-- column elevation_excised: x median -- mean over samples, the same without the massive channels
-- column ratio_low: x median -- lower end of ratio's interval
-- column ratio_high: x median -- upper end of ratio's interval
-- column energy_share_low: 0 to 1 -- lower end of energy_share's interval
-- column energy_share_high: 0 to 1 -- upper end of energy_share's interval
-- column effective_channels_low: channels -- lower end of effective_channels's interval
-- column effective_channels_high: channels -- upper end of effective_channels's interval
-- column massive_channels_low: channels -- lower end of massive_channels's interval
-- column massive_channels_high: channels -- upper end of massive_channels's interval
-- column registers_low: tokens -- lower end of registers's interval
-- column registers_high: tokens -- upper end of registers's interval
-- column token_outliers_low: channels -- lower end of token_outliers's interval
-- column token_outliers_high: channels -- upper end of token_outliers's interval
-- column elevation_low: x median -- lower end of elevation's interval
-- column elevation_high: x median -- upper end of elevation's interval
-- column elevation_excised_low: x median -- lower end of elevation_excised's interval
-- column elevation_excised_high: x median -- upper end of elevation_excised's interval
with chosen as (
    select
        layer,
        step,
        if(metric = 'energy_share_' || $k, 'energy_share', metric) as metric,
        n_samples,
        if(isfinite(mean), mean, null) as mean,
        if(isfinite(low), low, null) as low,
        if(isfinite(high), high, null) as high
    from concentration_means
    where step = if($step = -1, (select max(step) from concentration_means), $step)
)

select
    layer,
    step,
    min(n_samples) as n_samples,
    max(mean) filter (metric = 'ratio') as ratio,
    max(mean) filter (metric = 'energy_share') as energy_share,
    max(mean) filter (metric = 'effective_channels') as effective_channels,
    max(mean) filter (metric = 'n_massive_channels') as massive_channels,
    max(mean) filter (metric = 'n_registers') as registers,
    max(mean) filter (metric = 'n_token_outliers') as token_outliers,
    max(mean) filter (metric = 'elevation') as elevation,
    max(mean) filter (metric = 'elevation_excised') as elevation_excised,
    max(low) filter (metric = 'ratio') as ratio_low,
    max(high) filter (metric = 'ratio') as ratio_high,
    max(low) filter (metric = 'energy_share') as energy_share_low,
    max(high) filter (metric = 'energy_share') as energy_share_high,
    max(low) filter (metric = 'effective_channels') as effective_channels_low,
    max(high) filter (metric = 'effective_channels') as effective_channels_high,
    max(low) filter (metric = 'n_massive_channels') as massive_channels_low,
    max(high) filter (metric = 'n_massive_channels') as massive_channels_high,
    max(low) filter (metric = 'n_registers') as registers_low,
    max(high) filter (metric = 'n_registers') as registers_high,
    max(low) filter (metric = 'n_token_outliers') as token_outliers_low,
    max(high) filter (metric = 'n_token_outliers') as token_outliers_high,
    max(low) filter (metric = 'elevation') as elevation_low,
    max(high) filter (metric = 'elevation') as elevation_high,
    max(low) filter (metric = 'elevation_excised') as elevation_excised_low,
    max(high) filter (metric = 'elevation_excised') as elevation_excised_high
from chosen
where
    metric in (
        'ratio',
        'energy_share',
        'effective_channels',
        'n_massive_channels',
        'n_registers',
        'n_token_outliers',
        'elevation',
        'elevation_excised'
    )
group by layer, step
order by layer
