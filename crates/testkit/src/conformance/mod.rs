//! What every store must do, whatever database is behind it.
//!
//! An adapter says by [`Stores`] where its stores come from, and runs each case as a test of its own:
//!
//! ```ignore
//! rollcall_testkit::store_conformance!(MyStores);
//! // Or, where the database must be started first:
//! rollcall_testkit::store_conformance!(MyStores, ignore = "needs …");
//! ```
//!
//! A case is an `async fn` that takes a [`World`]. To add one, write it beside its like and name it in
//! [`store_conformance!`](crate::store_conformance). Cases never sleep for luck: they await what they expect, or fail
//! after [`PATIENCE`]. Killing the process needs a process to kill; [`recovery`] has the two halves of that test.

pub mod accounts;
pub mod classes;
pub mod outbox;
pub mod races;
pub mod recovery;
pub mod sessions;
pub mod stream;
mod world;

pub use world::{Committed, Listener, PATIENCE, SetClock, Stores, World};

/// Makes a test of every case, on stores from `$stores`.
#[macro_export]
macro_rules! store_conformance {
    ($stores:expr $(, ignore = $why:literal)?) => {
        $crate::store_conformance! { @cases [$(#[ignore = $why])?] $stores;
            accounts {
                accounts_are_found_by_id_and_address,
                an_address_belongs_to_one_account,
                changes_to_an_account_end_its_tokens,
                what_mails_change_in_an_account,
                lists_of_accounts_are_paged,
            }
            classes {
                students_stand_in_the_order_of_enrolment,
                classes_are_listed_by_teacher_and_student,
                a_class_is_changed_in_parts,
                an_archived_class_takes_no_changes,
                archiving_finishes_the_open_session,
                what_is_not_there_is_not_found,
            }
            sessions {
                a_session_lives_from_start_to_done,
                an_entry_keeps_everything_that_was_said,
                a_session_that_is_open_is_resumed,
                revisions_count_on_over_sessions,
                refusals_say_what_was_seen,
                a_command_without_a_class_finds_its_session,
                a_student_is_told_the_own_mark,
                who_leaves_keeps_the_mark,
                history_is_paged,
                sessions_grow_old,
                a_full_log_takes_only_done,
            }
            races {
                starting_at_once_opens_one_session,
                finishing_at_once_finishes_once,
                no_mark_lands_after_done,
                enrolment_meets_start,
                enrolment_meets_done,
                the_same_operation_is_done_once,
                an_operation_id_is_forgotten_after_a_while,
                commands_keep_their_order,
                many_sessions_do_not_mix,
            }
            stream {
                followers_hear_everything_in_order,
                every_kind_of_change_is_told,
                a_follower_resumes_at_its_place,
                a_slow_follower_misses_nothing,
                an_unknown_place_is_lost,
                a_quiet_stream_is_alive,
                a_busy_stream_is_alive,
                what_another_process_commits_is_heard,
                what_another_process_commits_counts_at_once,
                a_closed_store_answers_and_ends_its_streams,
            }
            outbox {
                mails_are_taken_when_they_are_due,
                a_newer_mail_takes_the_place_of_an_older,
                many_mails_are_queued_at_once,
                takers_do_not_share_a_mail,
                an_account_comes_with_its_welcome,
                who_loses_an_address_gets_no_mail,
                notices_wait_for_what_somebody_waits_for,
                a_mail_from_the_future_stands_in_nobodys_way,
                what_ends_tokens_ends_the_link_to_reset_the_password,
                a_token_is_used_once,
                a_token_that_is_not_good_changes_nothing,
                expired_mails_are_forgotten,
                finished_sessions_are_noted_for_their_absent,
                finishing_at_once_notes_once,
                what_waits_is_sent_after_a_restart,
            }
            recovery {
                what_was_open_goes_on_after_a_restart,
            }
        }
    };
    (@cases $attributes:tt $stores:expr; $($noun:ident { $($case:ident,)+ })+) => {
        $($($crate::store_conformance! { @case $attributes $stores; $noun $case })+)+
    };
    (@case [$(#[$attribute:meta])*] $stores:expr; $noun:ident $case:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $(#[$attribute])*
        async fn $case() {
            let world = $crate::conformance::World::new(&$stores).await;
            $crate::conformance::$noun::$case(world).await;
        }
    };
}
