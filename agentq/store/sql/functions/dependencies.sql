-- Breakers: one for each dependency that the whole fleet shares, and one for each tenant's own access to it.
--
-- Each function locks one breaker's row, several in the order of tenant and name. Losing a commit in a
-- crash loses counts of the last moments, so none of them waits for the disk.
--
-- closed -> open          the failure rate of the window, once it holds enough calls
-- open -> half_open       the pause is over and somebody wants to call
-- half_open -> closed     enough probes went well
-- half_open -> open       one did not; the next pause is twice as long
-- forced_open, forced_shut: an operator's word, until its time is over

create or replace function agentq.change_dependency(
    p_tenant text, p_name text, p_state text, p_why text, p_now timestamptz
) returns void language sql as $$
    update agentq.dependency set state = p_state, changed_at = p_now,
           forced_until = case when p_state in ('forced_open', 'forced_shut') then forced_until end
     where tenant = p_tenant and name = p_name;
    insert into agentq.dependency_change (tenant, name, state, why, at) values (p_tenant, p_name, p_state, p_why, p_now)
$$;


-- Open, or stay open: what was tried did not work, and nobody calls until the pause is over.
create or replace function agentq.open_dependency(
    p_tenant text, p_name text, p_pause_s double precision, p_retry_after_s double precision, p_now timestamptz
) returns void language sql as $$
    delete from agentq.dependency_probe where tenant = p_tenant and name = p_name;
    delete from agentq.dependency_window where tenant = p_tenant and name = p_name;
    update agentq.dependency set state = 'open', good = 0, pause_s = p_pause_s,
           probe_at = p_now + make_interval(secs => greatest(p_pause_s, coalesce(p_retry_after_s, 0)))
     where tenant = p_tenant and name = p_name
$$;


-- It works again: whoever waits for it comes back soon, spread a little so that they do not all come at once.
create or replace function agentq.release_held(p_tenant text, p_name text, p_spread_s double precision, p_now timestamptz)
returns void language sql as $$
    with held as materialized (
        select tenant, session_id, step_id from agentq.ledger_entry
         where state = 'ready' and due_at > p_now and failure ->> 'dependency' = p_name
           and (p_tenant = '*' or tenant = p_tenant)
         order by tenant, session_id, step_id for update skip locked)
    update agentq.ledger_entry e set due_at = least(e.due_at, p_now + make_interval(secs => random() * p_spread_s))
      from held where e.tenant = held.tenant and e.session_id = held.session_id and e.step_id = held.step_id
$$;


-- What operators forced ends by itself: shut becomes closed, open is tried before it is trusted.
create or replace function agentq.end_forced_dependencies(p_now timestamptz) returns void language plpgsql as $$
declare d record;
begin
    for d in
        select tenant, name, state from agentq.dependency where forced_until <= p_now
         order by tenant, name for update skip locked
    loop
        update agentq.dependency set good = 0 where tenant = d.tenant and name = d.name;
        perform agentq.change_dependency(
            d.tenant, d.name, case d.state when 'forced_shut' then 'closed' else 'half_open' end,
            'the time for which it was forced is over', p_now);
    end loop;
end $$;


-- Count what a process saw since it last told, and return every breaker that is not simply closed.
-- p_reports: [{tenant, name, ok, bad, refused, retry_after_s, failure}]; p_rules: see agentq.policies.dependencies.
-- `watched`: closed, and a tenant's own, with failures in its window: whoever calls counts its successes too.
create or replace function agentq.report_dependencies(p_reports jsonb, p_rules jsonb)
returns table (tenant text, name text, state text, wait_s double precision, watched boolean)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_slot bigint := floor(extract(epoch from v_now) * 10 / (p_rules ->> 'window_s')::double precision);
    r record; d agentq.dependency; v_ok bigint; v_bad bigint;
begin
    perform set_config('agentq.tenant', '*', true), set_config('synchronous_commit', 'off', true);
    perform agentq.end_forced_dependencies(v_now);
    for r in
        select * from jsonb_to_recordset(p_reports) as n (
               tenant text, name text, ok int, bad int, refused int, retry_after_s double precision, failure jsonb)
         order by n.tenant, n.name
    loop
        insert into agentq.dependency (tenant, name) values (r.tenant, r.name) on conflict do nothing;
        update agentq.dependency u
           set ok_total = u.ok_total + r.ok, bad_total = u.bad_total + r.bad, refused_total = u.refused_total + r.refused,
               last_failure = coalesce(r.failure, u.last_failure), seen_at = v_now
         where u.tenant = r.tenant and u.name = r.name
        returning u.* into d;
        -- An answer to a call that began before it opened says nothing about now: only probes do.
        if d.state <> 'closed' or r.ok + r.bad = 0 then continue; end if;
        insert into agentq.dependency_window as w (tenant, name, slot, ok, bad) values (r.tenant, r.name, v_slot, r.ok, r.bad)
        on conflict (tenant, name, slot) do update set ok = w.ok + excluded.ok, bad = w.bad + excluded.bad;
        delete from agentq.dependency_window w where w.tenant = r.tenant and w.name = r.name and w.slot <= v_slot - 10;
        if r.bad = 0 then continue; end if;
        select sum(w.ok), sum(w.bad) into v_ok, v_bad from agentq.dependency_window w
         where w.tenant = r.tenant and w.name = r.name;
        if v_ok + v_bad >= (p_rules ->> 'volume_min')::int
           and v_bad >= (p_rules ->> 'failure_rate')::double precision * (v_ok + v_bad) then
            update agentq.dependency u set openings = u.openings + 1 where u.tenant = r.tenant and u.name = r.name;
            perform agentq.open_dependency(r.tenant, r.name, (p_rules ->> 'pause_s')::double precision, r.retry_after_s, v_now);
            perform agentq.change_dependency(r.tenant, r.name, 'open',
                format('%s of %s calls failed, the latest with %s', v_bad, v_ok + v_bad, r.failure ->> 'type'), v_now);
        end if;
    end loop;
    return query
        select d.tenant, d.name, d.state,
               extract(epoch from case d.state when 'forced_open' then d.forced_until else d.probe_at end - v_now)::double precision,
               d.state = 'closed'
          from agentq.dependency d
         where d.state <> 'closed'
            or d.tenant <> '*' and exists (
               select from agentq.dependency_window w
                where w.tenant = d.tenant and w.name = d.name and w.bad > 0 and w.slot > v_slot - 10);
end $$;


-- Ask to be one of the few who try while it is not closed.
-- Not granted: come back in `wait_s`. Granted without a probe: it is closed by now.
-- Whose time is over gives its place up, and so does whose worker died.
create or replace function agentq.claim_probe(p_tenant text, p_name text, p_probe uuid, p_worker uuid, p_rules jsonb)
returns table (granted boolean, probe uuid, wait_s double precision) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); d agentq.dependency; v_free timestamptz; v_taken bigint;
begin
    perform set_config('agentq.tenant', '*', true), set_config('synchronous_commit', 'off', true);
    perform agentq.end_forced_dependencies(v_now);
    select * into d from agentq.dependency u where u.tenant = p_tenant and u.name = p_name for no key update;
    if d.state = 'forced_open' then
        return query select false, null::uuid,
            coalesce(extract(epoch from d.forced_until - v_now)::double precision, (p_rules ->> 'pause_max_s')::double precision);
        return;
    end if;
    if d.state = 'open' and d.probe_at > v_now then
        return query select false, null::uuid, extract(epoch from d.probe_at - v_now)::double precision;
        return;
    end if;
    if d.state = 'open' then
        update agentq.dependency u set state = 'half_open', good = 0 where u.tenant = p_tenant and u.name = p_name;
    elsif d.state is distinct from 'half_open' then
        return query select true, null::uuid, null::double precision;
        return;
    end if;
    delete from agentq.dependency_probe p
     where p.tenant = p_tenant and p.name = p_name
       and (p.expires_at <= v_now
            or exists (select from agentq.worker w where w.worker_id = p.worker and w.state not in ('live', 'draining')));
    select count(*), min(p.expires_at) into v_taken, v_free from agentq.dependency_probe p
     where p.tenant = p_tenant and p.name = p_name;
    if v_taken >= (p_rules ->> 'probes')::int then
        return query select false, null::uuid,
            least((p_rules ->> 'pause_s')::double precision, extract(epoch from v_free - v_now)::double precision);
        return;
    end if;
    insert into agentq.dependency_probe (tenant, name, probe, worker, expires_at)
    values (p_tenant, p_name, p_probe, p_worker, v_now + make_interval(secs => (p_rules ->> 'probe_s')::double precision));
    return query select true, p_probe, null::double precision;
end $$;


-- A probe's answer: good, bad, or nothing, when the call never came to an answer that says anything.
-- Also one whose time was over counts: late news is news.
create or replace function agentq.end_probe(
    p_tenant text, p_name text, p_probe uuid, p_answer text, p_retry_after_s double precision, p_failure jsonb, p_rules jsonb
) returns text language plpgsql as $$
declare v_now timestamptz := agentq.now(); d agentq.dependency;
begin
    perform set_config('agentq.tenant', '*', true), set_config('synchronous_commit', 'off', true);
    update agentq.dependency
       set ok_total = ok_total + (p_answer = 'good')::int, bad_total = bad_total + (p_answer = 'bad')::int,
           last_failure = coalesce(p_failure, last_failure), seen_at = v_now,
           good = good + (p_answer = 'good' and state = 'half_open')::int
     where tenant = p_tenant and name = p_name
    returning * into d;
    delete from agentq.dependency_probe where tenant = p_tenant and name = p_name and probe = p_probe;
    if d.state is distinct from 'half_open' then return d.state; end if;
    if p_answer = 'bad' then
        perform agentq.open_dependency(p_tenant, p_name,
            least(greatest(d.pause_s, (p_rules ->> 'pause_s')::real / 2) * 2, (p_rules ->> 'pause_max_s')::double precision),
            p_retry_after_s, v_now);
        return 'open';
    end if;
    if d.good >= (p_rules ->> 'good')::int then
        delete from agentq.dependency_probe where tenant = p_tenant and name = p_name;
        perform agentq.change_dependency(p_tenant, p_name, 'closed', format('%s probes in a row went well', d.good), v_now);
        perform agentq.release_held(p_tenant, p_name, (p_rules ->> 'pause_s')::double precision, v_now);
        return 'closed';
    end if;
    return d.state;
end $$;


-- An operator's word: forced_open, forced_shut, or auto, which gives it back to its own judgement.
-- Whoever forced it open has reasons to doubt it: given back, it is tried first.
create or replace function agentq.force_dependency(
    p_tenant text, p_name text, p_state text, p_for_s double precision, p_why text, p_rules jsonb
) returns table (before text, after text) language plpgsql as $$
declare v_now timestamptz := agentq.now(); v_before text; v_after text;
begin
    perform set_config('agentq.tenant', '*', true);
    insert into agentq.dependency (tenant, name) values (p_tenant, p_name) on conflict do nothing;
    select d.state into v_before from agentq.dependency d where d.tenant = p_tenant and d.name = p_name for no key update;
    v_after := case when p_state <> 'auto' then p_state
                    when v_before = 'forced_open' then 'half_open'
                    when v_before = 'forced_shut' then 'closed'
                    else v_before end;
    update agentq.dependency d
       set state = v_after, good = 0,
           forced_until = case when v_after in ('forced_open', 'forced_shut') then v_now + make_interval(secs => p_for_s) end
     where d.tenant = p_tenant and d.name = p_name;
    if v_after <> v_before then
        delete from agentq.dependency_probe d where d.tenant = p_tenant and d.name = p_name;
        delete from agentq.dependency_window d where d.tenant = p_tenant and d.name = p_name;
        perform agentq.change_dependency(p_tenant, p_name, v_after, p_why, v_now);
        if v_after <> 'forced_open' then
            perform agentq.release_held(p_tenant, p_name, (p_rules ->> 'pause_s')::double precision, v_now);
        end if;
    end if;
    return query select v_before, v_after;
end $$;
