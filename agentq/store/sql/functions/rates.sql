-- Rates: the buckets of `agentq/broker/rates.py`, in Postgres, for fleets whose broker cannot count.

-- Take from every bucket, or from none: the seconds to wait when one refuses, 0 when all gave; then for each bucket
-- how many seconds of it were taken, and how long until they have come back by themselves.
-- A bucket is the time at which it will be empty again. `share`: the tenant's part of the bucket before
-- it, which binds only while that one is more than half used, so that nothing lies idle.
create or replace function agentq.take_rate(
    p_provider text, p_caller text, p_weight real, p_closed text[], p_buckets jsonb
) returns double precision[] language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    v_wait double precision := 0; v_parts double precision; v_used double precision; v_ahead double precision;
    v_cost double precision; v_most double precision; b record; v_crowded boolean := false;
    v_taken double precision[] := '{0}';
begin
    perform set_config('synchronous_commit', 'off', true);
    select coalesce(max(extract(epoch from c.full_at - v_now)), 0) into v_wait from agentq.rate_bucket c
     where c.bucket = any (p_closed) and c.full_at > v_now;
    insert into agentq.rate_caller as r (provider, caller, weight, seen_at) values (p_provider, p_caller, p_weight, v_now)
    on conflict (provider, caller) do update set weight = excluded.weight, seen_at = excluded.seen_at
     where r.seen_at < v_now - interval '5 s' or r.weight <> excluded.weight;
    if v_wait > 0 then return array[v_wait]; end if;
    select sum(weight) / p_weight into v_parts from agentq.rate_caller
     where provider = p_provider and seen_at > v_now - interval '1 minute';
    insert into agentq.rate_bucket (bucket, full_at)
    select k.bucket, to_timestamp(0) from jsonb_to_recordset(p_buckets) as k (bucket text) order by k.bucket
    on conflict (bucket) do nothing;
    perform from agentq.rate_bucket where bucket in (select k.bucket from jsonb_to_recordset(p_buckets) as k (bucket text))
      order by bucket for update;
    for b in
        select k.*, c.full_at from rows from (jsonb_to_recordset(p_buckets) as (
               bucket text, each_s double precision, burst double precision, cost double precision, share boolean))
               with ordinality as k
          join agentq.rate_bucket c on c.bucket = k.bucket
         order by k.ordinality
    loop
        v_used := greatest(extract(epoch from b.full_at - v_now), 0);
        v_cost := b.cost * b.each_s * case when b.share then v_parts else 1 end;
        -- More than a whole burst at once is let through when nothing else is.
        v_most := greatest(b.burst * b.each_s, v_cost);
        if not b.share then
            v_crowded := v_used > b.burst * b.each_s / 2;
        end if;
        v_ahead := v_used + v_cost - v_most;
        if v_ahead > 0 and (not b.share or v_crowded) then v_wait := greatest(v_wait, v_ahead); end if;
        v_taken := v_taken || v_cost || (v_used + v_cost);
    end loop;
    if v_wait > 0 then return array[v_wait]; end if;
    update agentq.rate_bucket c
       set full_at = greatest(c.full_at, v_now) + make_interval(
               secs => k.cost * k.each_s * case when k.share then v_parts else 1 end)
      from jsonb_to_recordset(p_buckets) as k (
           bucket text, each_s double precision, cost double precision, share boolean)
     where c.bucket = k.bucket;
    return v_taken;
end $$;


-- Give back what a call took and did not use; a bucket is never more than empty.
create or replace function agentq.give_back_rate(p_buckets text[], p_seconds double precision[])
returns void language plpgsql as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    perform from agentq.rate_bucket where bucket = any (p_buckets) order by bucket for update;
    update agentq.rate_bucket c set full_at = greatest(c.full_at - make_interval(secs => g.seconds), agentq.now())
      from unnest(p_buckets, p_seconds) as g (bucket, seconds)
     where c.bucket = g.bucket and c.full_at > agentq.now();
end $$;
