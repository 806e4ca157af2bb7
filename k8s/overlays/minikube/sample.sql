-- The sample tables. They contain nothing specific to caching.
CREATE TABLE IF NOT EXISTS public.student (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    age integer CHECK (age BETWEEN 0 AND 150)
);

CREATE TABLE IF NOT EXISTS public.course (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    title varchar(200) NOT NULL,
    fee numeric(10, 2) NOT NULL DEFAULT 0,
    starts_at timestamptz,
    details jsonb,
    capacity smallint CHECK (capacity > 0),
    internal_note text
);

CREATE TABLE IF NOT EXISTS public.grade (
    student_id bigint,
    subject text,
    points smallint CHECK (points BETWEEN 0 AND 100),
    remark text,
    PRIMARY KEY (student_id, subject)
);

-- Not above, so that a database from before gets it, too.
ALTER TABLE public.grade ADD COLUMN IF NOT EXISTS certificate text UNIQUE;
