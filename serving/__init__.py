"""The serving tier: the services `sa` and `sb`, and the code that they share."""
