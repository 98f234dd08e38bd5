-- What lives: read before a deploy, to see whether the new code could go on with it.

-- name: live_steps
-- Steps that are still to run, with the state each begins from, in pages.
select e.tenant, e.session_id, e.step_id, e.name, s.agent, s.agent_version,
       coalesce(c.agent_version, s.input_version, s.agent_version),
       case when e.state_from is not null then agentq.recall(e.tenant, e.session_id, e.state_from) end, s.input, e.args,
       e.state_from, e.path
  from agentq.ledger_entry e
  join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id
  left join agentq.checkpoint c on c.tenant = e.tenant and c.session_id = e.session_id and c.step_id = e.state_from
 where e.state in ('ready', 'queued', 'running', 'waiting', 'held') and s.state in ('running', 'paused')
   and (%(agent)s::text is null or s.agent = %(agent)s)
   and (e.tenant, e.session_id, e.step_id) > (%(tenant)s, %(session)s::uuid, %(step)s::uuid)
 order by e.tenant, e.session_id, e.step_id limit %(max)s;

-- name: history
select seq, body, written_by, step_id from agentq.message
 where tenant = %(tenant)s and session_id = %(session)s order by seq;
