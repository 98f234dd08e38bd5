"""`python -m agentq` is the command `agentq`."""

from agentq.cli import main

if __name__ == "__main__":
    main(prog_name="agentq")
