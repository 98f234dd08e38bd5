-- Processes that died, and the steps they left.
-- How functions are written and replaced: see ledger.sql.


-- Processes that died: their liveness lock is free, or their lease is over, at two looks with no
-- heartbeat between.
create or replace function agentq.look_for_dead(p_lease_s double precision, p_look_s double precision)
returns setof uuid language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    w record; v_free boolean;
begin
    for w in
        select * from agentq.worker
         where state in ('live', 'draining')
           -- A restart took everybody's lock: whoever has not been heard since gets a lease to come back.
           and (seen_at > pg_postmaster_start_time()
                or clock_timestamp() > pg_postmaster_start_time() + make_interval(secs => p_lease_s))
         order by worker_id for update skip locked
    loop
        v_free := pg_try_advisory_lock(w.lock_key);
        if v_free then perform pg_advisory_unlock(w.lock_key); end if;
        if v_free or w.lease_until < v_now then
            if w.missing_since is null or w.seen_at > w.missing_since then
                update agentq.worker set missing_since = v_now where worker_id = w.worker_id;
            elsif w.missing_since <= v_now - make_interval(secs => p_look_s) then
                update agentq.worker set state = 'dead', stopped_at = v_now where worker_id = w.worker_id;
                return next w.worker_id;
            end if;
        elsif w.missing_since is not null then
            update agentq.worker set missing_since = null where worker_id = w.worker_id;
        end if;
    end loop;
end $$;


-- Processes whose end the kernel has told one on the same machine, so many seconds ago: one look suffices. The word alone
-- kills nobody. A lock that is held outweighs it, and so does a heartbeat that came after it; and as for the search above,
-- a lock that is free because Postgres has just started says nothing. Who is not found dead is looked at again.
create or replace function agentq.look_at_ended(p_workers uuid[], p_told_s double precision[], p_lease_s double precision)
returns setof uuid language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    w record; v_free boolean;
begin
    for w in
        select live.worker_id, live.lock_key
          from unnest(p_workers, p_told_s) as told (worker_id, told_s)
          join agentq.worker live on live.worker_id = told.worker_id
         where live.state in ('live', 'draining')
           and live.seen_at <= v_now - make_interval(secs => told.told_s)
           and (live.seen_at > pg_postmaster_start_time()
                or clock_timestamp() > pg_postmaster_start_time() + make_interval(secs => p_lease_s))
         order by live.worker_id for update of live skip locked
    loop
        v_free := pg_try_advisory_lock(w.lock_key);
        if v_free then
            perform pg_advisory_unlock(w.lock_key);
            update agentq.worker set state = 'dead', stopped_at = v_now where worker_id = w.worker_id;
            return next w.worker_id;
        end if;
    end loop;
end $$;


-- Take back the steps of dead workers. The first death returns a step to the ordinary pool, the
-- second makes it a suspect for quarantine, and only one that kills its worker there is buried.
create or replace function agentq.take_back(p_max int)
returns table (tenant text, session_id uuid, step_id uuid, fate text, dispatch jsonb) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    e agentq.ledger_entry; v_of record; v_wake jsonb; v_fate text; v_failure jsonb;
begin
    perform set_config('agentq.tenant', '*', true);
    for e in
        select l.* from agentq.ledger_entry l
         where l.state = 'running'
           and not exists (select from agentq.worker w where w.worker_id = l.worker and w.state in ('live', 'draining'))
         order by l.tenant, l.session_id, l.step_id limit p_max
    loop
        -- The session first, then the entry: the order every other writer keeps.
        select s.agent, s.agent_version into v_of from agentq.session s
         where s.tenant = e.tenant and s.session_id = e.session_id for no key update skip locked;
        if not found then continue; end if;
        v_fate := case when e.quarantine then 'buried' when e.crashes >= 1 then 'suspect' else 'again' end;
        v_failure := jsonb_build_object('kind', 'worker_lost', 'type', 'WorkerLost', 'attempt', e.attempt,
            'message', case when v_fate <> 'buried' then 'the worker died under this step' else
                format('the worker died under this step %s times, the last time alone in quarantine', e.crashes + 1) end);
        update agentq.ledger_entry l
           set state = case v_fate when 'buried' then 'dead' else 'queued' end,
               settled_at = case v_fate when 'buried' then v_now end,
               failure = case v_fate when 'buried' then v_failure else l.failure end,
               failures = agentq.remember_failure(l.failures, v_failure, v_now),
               crashes = l.crashes + 1, attempt = l.attempt - 1, quarantine = l.quarantine or v_fate = 'suspect',
               worker = null, fence_token = null, queued_at = v_now, dispatches = 0
         where l.tenant = e.tenant and l.session_id = e.session_id and l.step_id = e.step_id
           and l.state = 'running' and l.fence = e.fence and l.fence_token = e.fence_token;
        if not found then continue; end if;
        perform agentq.trace_attempt(e, v_of.agent, v_of.agent_version, e.worker, 'lost', v_now, v_failure, null,
                                     agentq.usage_of_lost(e));
        if v_fate = 'buried' then
            if e.join_step is null then
                v_wake := agentq.end_session(e.tenant, e.session_id, 'failed', null, v_failure, v_now);
            else
                v_wake := agentq.finish_branch(e.tenant, e.session_id, e.join_step, e.branch, false, null, v_failure, v_now);
            end if;
            perform agentq.bury(e.tenant, e.session_id, e.step_id, v_now);
            v_wake := coalesce(v_wake, agentq.hand_on_slot(e.tenant, v_now));
        else
            v_wake := agentq.wake(e.session_id, e.step_id, e.name, e.quarantine or v_fate = 'suspect', e.fence);
        end if;
        return query select e.tenant, e.session_id, e.step_id, v_fate, v_wake;
    end loop;
end $$;
