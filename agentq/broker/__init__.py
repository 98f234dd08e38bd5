"""Transport: queues, envelopes and the publisher. What passes here may be lost, repeated or forged."""
