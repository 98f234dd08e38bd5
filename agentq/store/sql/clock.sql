-- The only clock. Tests move it with the setting `agentq.clock_offset`; nothing else may.
create or replace function agentq.now() returns timestamptz
language sql volatile parallel safe as
$$ select clock_timestamp() + coalesce(nullif(current_setting('agentq.clock_offset', true), '')::interval, interval '0') $$;
