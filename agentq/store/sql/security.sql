-- Row security: a transaction sees the rows of the tenant it has named, and no other.
-- Forced, so that it binds the owner too; a role with BYPASSRLS or a superuser still escapes it,
-- and `agentq db check` says so when the fleet connects as one.
do $$
declare t text;
begin
    foreach t in array array['session', 'ledger_entry', 'checkpoint', 'branch', 'message', 'effect', 'session_event',
                             'dead_letter', 'poison_message', 'operator_action', 'refused_submission',
                             'trace', 'decision', 'trace_rest', 'decision_rest', 'approval', 'notice',
                             'budget', 'budget_window', 'reservation', 'budget_alert', 'rate_limit',
                             'dependency', 'dependency_window', 'dependency_probe', 'dependency_change',
                             'memory', 'tenant_key',
                             'session_tally', 'anomaly_baseline', 'anomaly', 'anomaly_order',
                             'spend_hour', 'spend_day', 'spend_session'] loop
        execute format('alter table agentq.%I enable row level security', t);
        execute format('alter table agentq.%I force row level security', t);
        execute format('drop policy if exists tenant_rows on agentq.%I', t);
        execute format($policy$create policy tenant_rows on agentq.%I using (
            tenant = current_setting('agentq.tenant', true) or current_setting('agentq.tenant', true) = '*')$policy$, t);
    end loop;
end $$;
