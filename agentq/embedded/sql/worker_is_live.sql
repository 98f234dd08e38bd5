-- One row when one of these processes has registered and is not on its way out.
select 1 from agentq.worker where pid = any(%(pids)s) and state = 'live' limit 1;
