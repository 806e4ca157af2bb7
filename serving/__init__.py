"""The serving tier: the services `sa` and `sb`, and what they share."""
