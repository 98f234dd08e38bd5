-- Alone in its file: it runs outside any transaction.
create database agentq owner agentq_owner;
