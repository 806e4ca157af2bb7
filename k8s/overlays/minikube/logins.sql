-- The logins, created when PostgreSQL first starts on an empty volume. The two roles of `cachesync install` are created
-- beforehand, so that the owner of the tables can run it without the privilege to create roles.
\getenv owner_password OWNER_DB_PASSWORD
\getenv sa_password SA_DB_PASSWORD
\getenv sb_password SB_DB_PASSWORD
\getenv worker_password WORKER_DB_PASSWORD

CREATE ROLE cachesync_service;
CREATE ROLE cachesync_worker;
CREATE ROLE sa LOGIN PASSWORD :'sa_password' IN ROLE cachesync_service;
CREATE ROLE sb LOGIN PASSWORD :'sb_password' IN ROLE cachesync_service;
CREATE ROLE worker LOGIN PASSWORD :'worker_password' IN ROLE cachesync_worker;

CREATE ROLE owner LOGIN PASSWORD :'owner_password';
ALTER DATABASE cachesync OWNER TO owner;
SET ROLE owner;
\i /sample.sql
