"""The eye test of attentions: trains them on probes, and draws the chart of what they see."""
