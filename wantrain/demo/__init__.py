"""The demo behind `wantrain demo`: a small GPT that several processes on this machine train together, with churn."""
