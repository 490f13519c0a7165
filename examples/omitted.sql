-- What do captions omit most? A DuckDB session over the files of a finished run; nothing of CoCu is needed.
--
--     cd artifacts/demo && duckdb < ../../examples/omitted.sql

-- The vocabulary: the row number is the concept id.
CREATE OR REPLACE TEMP VIEW vocabulary AS
SELECT file_row_number AS id, concept FROM read_parquet('vocabulary.parquet', file_row_number = true);

-- What each caption mentions, and what each archive holds.
CREATE OR REPLACE TEMP VIEW mentioned AS
SELECT key, concept FROM (SELECT key, unnest(concepts) AS id FROM 'embeddings/*.parquet') JOIN vocabulary USING (id);

CREATE OR REPLACE TEMP VIEW archived AS
SELECT key, caption, entry.concept, entry.score, entry.support
FROM (SELECT key, caption, unnest(concepts) AS entry FROM 'archives/*.parquet');

CREATE OR REPLACE TEMP TABLE omitted AS
SELECT archived.* FROM archived ANTI JOIN mentioned USING (key, concept);

-- 1. The concepts that are in most archives and out of the caption; `named`: how often a caption does say it.
SELECT concept, count(*) AS images, count(*) FILTER (support >= 2) AS two_agree, round(avg(score), 2) AS score,
       (SELECT count(*) FROM mentioned WHERE mentioned.concept = omitted.concept) AS named
FROM omitted GROUP BY concept ORDER BY images DESC, concept LIMIT 10;

-- 2. How much a caption leaves out: archives by the number of concepts that their captions omit.
SELECT missing, count(*) AS images
FROM (SELECT key, count(omitted.concept) AS missing FROM 'archives/*.parquet' LEFT JOIN omitted USING (key) GROUP BY key)
GROUP BY missing ORDER BY missing;

-- 3. What goes unsaid beside what is said.
SELECT mentioned.concept AS says, omitted.concept AS omits, count(*) AS images
FROM mentioned JOIN omitted USING (key) GROUP BY ALL ORDER BY images DESC, says, omits LIMIT 10;

-- 4. Captions whose best omitted concept is most certain.
SELECT caption, arg_max(concept, score) AS omits, round(max(score), 2) AS score
FROM omitted WHERE support >= 2 GROUP BY key, caption ORDER BY max(score) DESC, key LIMIT 5;
