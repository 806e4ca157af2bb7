-- Shows the services all rows while row security is enabled.
CREATE POLICY cachesync_bypass ON {{table}} TO cachesync_service USING (true);
