DROP POLICY cachesync_bypass ON {{table}};
