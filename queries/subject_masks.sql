-- purpose: Which images have no subject, and how large is it in the others? Samples without a mask come first, with the
--   reason, then those whose image shows no subject, then the others, smallest subject first: an IoU is not informative
--   if the subject is tiny or nearly the whole image.
-- needs: masks
-- grain: one row per sample
-- shown: sample, prompt, outcome, area, score, error
-- param outcome: str = all {all, failed, empty, found} -- only samples without a mask (failed), with an empty mask, or
--   with a subject
-- param top: int = 0 -- maximum number of samples; 0 for all
-- column sample_id: id -- the manifest's id
-- column sample: index -- index on the store's sample axis, 0-based
-- column prompt: text -- the sample's prompt
-- column seed: seed -- the sample's seed
-- column outcome: name -- failed, empty or found
-- column area: 0 to 1 -- share of the image that the subject covers; null if the mask failed
-- column score: of the source -- confidence of the source, on its own scale; null if it reports none
-- column resized: true or false -- whether the mask was resized to the size of the image
-- column error: text -- why there is no mask
with outcomes as (
    select
        sample_id,
        sample,
        if(error is not null, 'failed', if(area = 0, 'empty', 'found')) as outcome,
        area,
        if(isfinite(score), score, null) as score,
        resized,
        error
    from masks_samples
),

chosen as (
    select *, list_position(['failed', 'empty', 'found'], outcome) as place
    from outcomes
    where $outcome = 'all' or outcome = $outcome
),

reported as (
    select *
    from chosen
    qualify $top = 0 or row_number() over (order by place, area, sample) <= $top
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
    outcome,
    area,
    score,
    resized,
    error
from reported
join prompts using (sample_id)
order by place, area, sample
