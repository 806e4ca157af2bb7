"""The settings of the service."""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1]
SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["DB_HOST"],
        "PORT": os.environ["DB_PORT"],
        "NAME": os.environ["DB_NAME"],
        "USER": os.environ["DB_USERNAME"],
        "PASSWORD": os.environ["DB_PASSWORD"],
        "CONN_MAX_AGE": 60,
    }
}
INSTALLED_APPS = ["shop", "cachesync.contrib.django"]
CACHESYNC = {
    "SERVICE": "office",
    "REDIS": os.environ["REDIS_URL"],
    "ENTITIES": FOLDER / "entities.toml",
}
