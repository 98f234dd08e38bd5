-- Data keys of tenants, wrapped by the provider's key. What each is for stands in agentq/store/vault.py.

-- name: of
-- Every key of one tenant: few, and read once in a while.
select key_no, state, kek, wrapped from agentq.tenant_key where tenant = %(tenant)s order by key_no;

-- name: add
-- Nobody else may have made this one meanwhile, or an active one beside it.
insert into agentq.tenant_key (tenant, key_no, kek, wrapped)
values (%(tenant)s, %(key_no)s::int, %(kek)s, %(wrapped)s)
on conflict do nothing
returning key_no;

-- name: retire
update agentq.tenant_key set state = 'retired', retired_at = agentq.now()
 where tenant = %(tenant)s and state = 'active' and key_no = %(key_no)s::int
returning key_no;

-- name: rewrap
-- Only as it was read: somebody may have destroyed it since.
update agentq.tenant_key set kek = %(kek)s, wrapped = %(wrapped)s
 where tenant = %(tenant)s and key_no = %(key_no)s::int and wrapped = %(before)s
returning key_no;

-- name: destroy
-- Whoever calls it has named the tenant.
update agentq.tenant_key set state = 'destroyed', wrapped = null, destroyed_at = agentq.now()
 where tenant = %(tenant)s and state <> 'destroyed'
returning key_no;

-- name: ls
select tenant, key_no, state, kek, created_at, retired_at, destroyed_at from agentq.tenant_key
 where %(tenant)s::text is null or tenant = %(tenant)s
 order by tenant, key_no;

-- name: wrapped_by_others
-- In portions: those that the provider's present key does not wrap.
select tenant, key_no, kek, wrapped from agentq.tenant_key
 where state <> 'destroyed' and kek <> %(kek)s and (%(tenant)s::text is null or tenant = %(tenant)s)
 order by tenant, key_no;

-- name: in_use
-- Whether anything may be sealed: a process without a provider must not run then.
select exists (select from agentq.tenant_key where state <> 'destroyed');

-- name: forked_step
-- The step that a fork begins as, and the one that it is a copy of.
select o.path, f.step_id, f.path, f.args from agentq.ledger_entry f, agentq.ledger_entry o
 where f.tenant = %(tenant)s and f.session_id = %(fork)s
   and o.tenant = %(tenant)s and o.session_id = %(session)s and o.step_id = %(step)s;

-- name: forked_branches
select f.join_step, f.branch, o.child_session, f.result from agentq.branch f
  join agentq.branch o on o.tenant = f.tenant and o.session_id = %(session)s and o.join_step = %(step)s
                      and o.branch = f.branch
 where f.tenant = %(tenant)s and f.session_id = %(fork)s and f.result is not null;

-- name: forked_messages
select seq, body, written_by, step_id from agentq.message
 where tenant = %(tenant)s and session_id = %(fork)s order by seq;

-- name: forked_approvals
select approval_id, name, effect_key, args_hash, args, question, details from agentq.approval
 where tenant = %(tenant)s and session_id = %(fork)s;

-- name: set_args
update agentq.ledger_entry set args = %(args)s
 where tenant = %(tenant)s and session_id = %(fork)s and step_id = %(copy)s;

-- name: set_result
update agentq.branch set result = %(result)s
 where tenant = %(tenant)s and session_id = %(fork)s and join_step = %(join)s and branch = %(branch)s;

-- name: set_message
update agentq.message set body = %(body)s where tenant = %(tenant)s and session_id = %(fork)s and seq = %(seq)s;

-- name: set_question
update agentq.approval set args = %(args)s, question = %(question)s, details = %(details)s
 where tenant = %(tenant)s and session_id = %(fork)s and approval_id = %(approval)s;

-- name: waiting_place
-- The step that an approval is about: arguments are bound to its place.
select e.session_id, e.path from agentq.approval a
  join agentq.ledger_entry e on e.tenant = a.tenant and e.session_id = a.session_id and e.step_id = a.step_id
 where a.tenant = %(tenant)s and a.approval_id = %(approval)s;

-- name: session_of_letter
select session_id from agentq.dead_letter where tenant = %(tenant)s and letter_id = %(letter)s;
