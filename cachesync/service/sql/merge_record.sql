-- The value of a composite column after a merge patch; the patch is jsonb.
(
    SELECT r.merged
    FROM jsonb_to_record(
        jsonb_build_object('merged', cachesync.merge_patch(to_jsonb(t.{{column}}), p.{{column}}))
    ) AS r (merged {{type}})
)
