-- Approvals and notices, as workers, approvers and the relay ask. What each function does, and why, stands with it.

-- name: permit_effect
select * from agentq.permit_effect(%(tenant)s, %(session)s, %(step)s, %(fence)s::int, %(token)s::bigint, %(key)s,
                                   %(hash)s, %(name)s, %(args)s, %(question)s, %(auto)s);

-- name: answer
-- Of the question, not of a call: the step may have waited for the leave of a call of its own since. A step that
-- is replayed, and the question before it not, stands in the same place and has the same answer.
select a.approval_id, a.state, a.decided_by, a.decided_via, a.comment, a.args, a.edited, a.decided_at,
       a.name, a.effect_key, a.args_hash
  from agentq.ledger_entry e
  join agentq.ledger_entry same on same.tenant = e.tenant and same.session_id = e.session_id and same.path = e.path
  join agentq.approval a on a.tenant = e.tenant and a.session_id = e.session_id and a.step_id = same.step_id
 where e.tenant = %(tenant)s and e.session_id = %(session)s and e.step_id = %(step)s and a.kind = 'ask'
   and a.state in ('granted', 'denied', 'expired')
 order by a.asked_at desc limit 1;

-- name: kind
select kind from agentq.approval where tenant = %(tenant)s and approval_id = %(approval)s;

-- name: decide
select * from agentq.decide_approval(%(tenant)s, %(approval)s, %(verdict)s, %(by)s, %(via)s, %(groups)s::text[],
                                     %(comment)s, %(edited)s, %(edited_hash)s, %(diff)s, %(args)s);

-- name: get
select a.tenant, a.approval_id, a.session_id, a.step_id, s.agent, a.kind, a.name, a.question, a.groups, a.state,
       a.asked_at, a.deadline_at, a.decided_at, a.decided_by, a.decided_via, a.comment, a.effect_key, a.args,
       a.args_hash, a.details, a.edited, a.diff
  from agentq.approval a join agentq.session s on s.tenant = a.tenant and s.session_id = a.session_id
 where a.tenant = %(tenant)s and a.approval_id = %(approval)s;

-- name: waiting
-- What is open, whole and by its deadline: one question for a page of them.
select a.tenant, a.approval_id, a.session_id, a.step_id, s.agent, a.kind, a.name, a.question, a.groups, a.state,
       a.asked_at, a.deadline_at, a.decided_at, a.decided_by, a.decided_via, a.comment, a.effect_key, a.args,
       a.args_hash, a.details, a.edited, a.diff
  from (select * from agentq.approval
         where state = 'open' and (%(tenant)s::text is null or tenant = %(tenant)s)
         order by deadline_at, approval_id limit %(limit)s) a
  join agentq.session s on s.tenant = a.tenant and s.session_id = a.session_id
 order by a.deadline_at, a.approval_id;

-- name: list
-- The open ones by what is due first, the others by what was decided last.
select a.tenant, a.approval_id, a.session_id, a.step_id, s.agent, a.kind, a.name, a.question, a.groups, a.state,
       a.asked_at, a.deadline_at, a.decided_at, a.decided_by, a.decided_via, a.comment, a.effect_key, a.args_hash
  from (select * from agentq.approval
         where (%(tenant)s::text is null or tenant = %(tenant)s)
           and (%(state)s::text is null or state = %(state)s)
           and (%(session)s::uuid is null or session_id = %(session)s)
           and (%(group)s::text is null or %(group)s = any (groups))
         order by decided_at desc nulls first, deadline_at limit %(limit)s) a
  join agentq.session s on s.tenant = a.tenant and s.session_id = a.session_id
 order by a.decided_at desc nulls first, a.deadline_at;

-- name: find
select tenant, approval_id from agentq.approval
 where approval_id between %(low)s and %(high)s and (%(tenant)s::text is null or tenant = %(tenant)s)
 limit 3;

-- name: expire
select * from agentq.expire_approvals(%(max)s::int);

-- name: remind
select agentq.remind_approvals(%(max)s::int);

-- name: take_notices
select * from agentq.take_notices(%(max)s::int, %(lease_s)s::double precision);

-- name: settle_notice
select agentq.settle_notice(%(tenant)s, %(notice)s, %(attempt)s::int, %(state)s, %(delay_s)s::double precision,
                            %(failure)s);

-- name: notices
select notice_id, kind, channel, state, attempts, due_at, sent_at, failure from agentq.notice
 where tenant = %(tenant)s and approval_id = %(approval)s
 order by due_at;
