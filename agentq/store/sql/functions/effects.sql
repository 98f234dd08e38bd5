-- Effects claimed before their call and settled after it, under the step's fence.
-- How functions are written and replaced: see ledger.sql.


-- Claim an effect before its call goes out. Only the attempt that holds the step's fence may.
-- outcome: fresh | again | done | pending | mine | held | unknown | conflict | superseded | dry
-- dry: the session only recalls what is recorded (`p_dry`), and this is not.
-- A claim that is not idempotent waits for the disk (`p_durable`): after a crash it must be known.
create or replace function agentq.claim_effect(
    p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_name text, p_hash bytea,
    p_durable boolean, p_dry boolean
) returns table (outcome text, result bytea, failure jsonb) language plpgsql as $$
#variable_conflict use_column
declare f record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    if not p_durable then perform set_config('synchronous_commit', 'off', true); end if;
    if not exists (select from agentq.ledger_entry l
                    where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
                      and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token) then
        return query select 'superseded', null::bytea, null::jsonb; return;
    end if;
    if p_dry then
        select * into f from agentq.effect e where e.tenant = p_tenant and e.effect_key = p_key;
        return query select case when f.state is distinct from 'done' then 'dry' when f.args_hash <> p_hash then 'conflict'
                                 else 'done' end, f.result, null::jsonb;
        return;
    end if;
    insert into agentq.effect (tenant, effect_key, session_id, step_id, fence, name, args_hash)
    values (p_tenant, p_key, p_session, p_step, p_fence, p_name, p_hash)
    on conflict (tenant, effect_key) do nothing;
    if found then return query select 'fresh', null::bytea, null::jsonb; return; end if;
    select * into strict f from agentq.effect e where e.tenant = p_tenant and e.effect_key = p_key for no key update;
    if f.args_hash <> p_hash then
        return query select 'conflict', null::bytea, jsonb_build_object('name', f.name); return;
    end if;
    if f.state = 'pending' and (f.session_id, f.step_id, f.fence) = (p_session, p_step, p_fence) then
        return query select 'mine', null::bytea, null::jsonb; return;
    end if;
    if f.state = 'pending' and (f.session_id, f.step_id) <> (p_session, p_step) and exists (
        select from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = f.session_id and l.step_id = f.step_id
           and l.state = 'running' and l.fence = f.fence) then
        return query select 'held', null::bytea, null::jsonb; return;
    end if;
    if f.state = 'failed' then
        update agentq.effect e set state = 'pending', settled_at = null, failure = null, session_id = p_session,
               step_id = p_step, fence = p_fence, calls = e.calls + 1, claimed_at = agentq.now()
         where e.tenant = p_tenant and e.effect_key = p_key;
        return query select 'again', null::bytea, null::jsonb; return;
    end if;
    return query select f.state, f.result, f.failure;
end $$;


-- Take over an effect that a dead attempt left pending, to call it again or to settle what was found.
create or replace function agentq.take_over_effect(
    p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_calling boolean
) returns boolean language plpgsql as $$
declare f record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    if not exists (select from agentq.ledger_entry l
                    where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
                      and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token) then
        return false;
    end if;
    select * into f from agentq.effect e
     where e.tenant = p_tenant and e.effect_key = p_key and e.state = 'pending' for no key update;
    if not found then return false; end if;
    -- Two steps that share the key may both have found it pending: the second must not take it from the first.
    if (f.session_id, f.step_id) <> (p_session, p_step) and exists (
        select from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = f.session_id and l.step_id = f.step_id
           and l.state = 'running' and l.fence = f.fence) then
        return false;
    end if;
    update agentq.effect set session_id = p_session, step_id = p_step, fence = p_fence, claimed_at = agentq.now(),
           calls = calls + case when p_calling then 1 else 0 end
     where tenant = p_tenant and effect_key = p_key;
    return true;
end $$;


-- Store what a call came to. False: another attempt took the effect over; this result is not it.
-- Storing it again, because the answer was lost, is no loss.
create or replace function agentq.settle_effect(
    p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int, p_state text, p_result bytea, p_failure jsonb
) returns boolean language plpgsql as $$
begin
    perform set_config('agentq.tenant', p_tenant, true);
    update agentq.effect set state = p_state, result = p_result, failure = p_failure, settled_at = agentq.now()
     where tenant = p_tenant and effect_key = p_key and state = 'pending'
       and session_id = p_session and step_id = p_step and fence = p_fence;
    return found or exists (
        select from agentq.effect
         where tenant = p_tenant and effect_key = p_key and state = p_state and result is not distinct from p_result
           and session_id = p_session and step_id = p_step and fence = p_fence);
end $$;


-- Give back an effect whose call was held back: it never went out, so nobody has to ask what became of it.
create or replace function agentq.give_back_effect(p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int)
returns boolean language plpgsql as $$
declare v_calls int;
begin
    perform set_config('agentq.tenant', p_tenant, true), set_config('synchronous_commit', 'off', true);
    select calls into v_calls from agentq.effect
     where tenant = p_tenant and effect_key = p_key and state = 'pending'
       and session_id = p_session and step_id = p_step and fence = p_fence for no key update;
    if v_calls = 1 then
        delete from agentq.effect where tenant = p_tenant and effect_key = p_key;
    elsif v_calls > 1 then
        update agentq.effect set state = 'failed', calls = calls - 1, settled_at = agentq.now(),
               failure = jsonb_build_object('kind', 'refused', 'type', 'HeldBack', 'message', 'what it needs is out of order')
         where tenant = p_tenant and effect_key = p_key;
    end if;
    return v_calls is not null;
end $$;


-- A person's answer to what became of an effect whose outcome nobody knows.
-- outcome: resolved | already | settled | running | missing
-- `running`: the call is out now, so nobody can know yet. `settled`: it was known, and otherwise than told.
create or replace function agentq.resolve_effect(
    p_tenant text, p_key text, p_done boolean, p_result bytea, p_failure jsonb, p_by text, p_dry boolean
) returns table (outcome text, before text) language plpgsql as $$
#variable_conflict use_column
declare f agentq.effect; v_state text := case when p_done then 'done' else 'failed' end;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select * into f from agentq.effect e where e.tenant = p_tenant and e.effect_key = p_key for no key update;
    if f.effect_key is null then return query select 'missing', null::text; return; end if;
    if f.state = v_state and f.result is not distinct from p_result then
        return query select 'already', f.state; return;
    end if;
    if f.state not in ('pending', 'unknown') then return query select 'settled', f.state; return; end if;
    if f.state = 'pending' and exists (
        select from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = f.session_id and l.step_id = f.step_id
           and l.state = 'running' and l.fence = f.fence) then
        return query select 'running', f.state; return;
    end if;
    if not p_dry then
        update agentq.effect e set state = v_state, result = p_result, failure = p_failure, resolved_by = p_by,
               settled_at = agentq.now()
         where e.tenant = p_tenant and e.effect_key = p_key;
    end if;
    return query select 'resolved', f.state;
end $$;
