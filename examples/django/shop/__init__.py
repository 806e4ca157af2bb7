"""What customers have purchased: a service with Django that caches its rows."""
