DROP FUNCTION IF EXISTS
{{log_insert}}(), {{log_update}}(), {{log_move}}(), {{log_delete}}(), {{log_truncate}}(),
{{redraw}}(text [], bigint []), {{redraw_as_writer}}();
