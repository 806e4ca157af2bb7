DROP FUNCTION IF EXISTS
{{draw_update}}(), {{log_insert}}(), {{log_update}}(), {{log_move}}(), {{log_delete}}(), {{log_truncate}}(),
{{log_moves}}(text [], bigint []), {{keep_moved}}(bigint), {{redraw}}(text [], bigint []), {{redraw_as_writer}}(),
{{draw}}(), {{log_row}}(), {{log_delete_of}}(text, bigint);
